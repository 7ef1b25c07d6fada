"""Every config field with its meaning, unit and choices. Other configs start from this one and override some fields.

tools/env python main.py --config=configs/quickstart.py --workdir=runs/quickstart --config.distill.hfd.weight=5.0
"""

from ml_collections import ConfigDict

from hfd_jax.core.options import defaults
from hfd_jax.distill.registry import METHODS
from hfd_jax.models.registry import DEFAULT, default_options


def get_config() -> ConfigDict:
    config = ConfigDict()

    # Stages to run: "teacher" (stage 1), "student" (stage 2) or "all" (both). Stage 2 can be run later in the same
    # workdir.
    config.stage = "all"
    # Networks to train on SAR for comparison with the HFD student, with the same number of steps and seed, from the
    # labelled pairs only and without distillation: "sar_only" (the student from scratch), "teacher_init" (the student
    # from the teacher's weights), and any architecture by name (see model.architecture).
    config.baselines = ()
    # Seed of the initialisation, order, crops, augmentation and choice of labels. The same config and seed give the
    # same numbers.
    config.seed = 0
    # Computation dtype of the networks: "float32" or "bfloat16" (parameters, batch statistics and losses stay float32).
    config.dtype = "float32"
    # "jit" (sharded over all devices) or "pmap"; both give the same losses.
    config.parallel = "jit"
    # Whether this process is one of several of the same run; JAX finds the others (docs/cluster.md).
    config.distributed = False

    config.data = data = ConfigDict()
    # A prepared data set, by the name that tools.prepare_data prints ("folder/my_data"), several of the same bands and
    # classes ("folder/my_data,folder/more_pairs"), or "scenes" for the simulated data set, generated on first use.
    data.name = "scenes"
    # Root folder of the prepared data sets.
    data.dir = "data"
    # Names of the bands, in the order of the network's input; (): all bands.
    data.sar_bands = ()
    data.eo_bands = ()
    # Side length of a training crop, pixels; a multiple of 32.
    data.crop = 64
    # Labelled pairs per step over all devices; a multiple of the number of devices.
    data.batch_size = 16
    # Share of the training labels to use, 0 to 1, chosen by the seed; the other pairs count as unlabelled.
    data.label_share = 1.0
    # Unlabelled pairs per labelled pair in the batches of a student with distillation, if there are unlabelled pairs.
    # They come in addition to data.batch_size labelled pairs, which every network sees in the same order; 0: none.
    data.unlabelled_ratio = 1.0
    # Threads of this process and number of additional processes that read data (0: none).
    data.threads = 4
    data.workers = 0

    # The simulated data set (data.name = "scenes").
    data.scenes = scenes = ConfigDict()
    scenes.size = 64  # side length of a tile, pixels
    scenes.pixel_size = 1.0  # metres
    scenes.looks = 1.0  # number of looks of the speckle
    scenes.incidence = 38.0  # incidence angle of the radar, degrees from the vertical
    scenes.misregistration = 0.0  # shift of the optical image, pixels
    scenes.unlabelled_share = 0.0  # share of the training tiles without labels
    # What real data have and the scenes above lack; 0 for none.
    scenes.regions = 0  # regions per split, which differ in land cover, relief, season and radar; 0: a single world
    scenes.nuisance = 0.0  # strength of what only one sensor sees, such as crops and haze, 0 to 2; 1 is strong
    scenes.clouds = 0.0  # share of the optical pixels under (masked) clouds
    scenes.label_shift = 0.0  # displacement of class borders in training and validation labels, pixels
    scenes.label_change = 0.0  # share of the land whose training and validation labels are outdated
    scenes.seed = 0  # seed of the scenes, independent of config.seed
    scenes.train, scenes.validation, scenes.test = 600, 100, 200  # tiles per split

    # Preprocessing of the input, the same in training and inference.
    config.normalise = normalise = ConfigDict()
    normalise.sar_filter = "none"  # speckle filter: "none" or "lee" (7 x 7)
    normalise.sar_looks = 1.0  # number of looks of the images, needed by the filter
    normalise.clip = False  # clip to the 1st and 99th percentile of the training pixels

    # Augmentation in training.
    config.augment = augment = ConfigDict()
    # Flips that preserve the look direction, since others would reverse layover and shadow; with the look axis "any",
    # flips along both axes and rotations by 90 degrees.
    augment.flips = True
    augment.sar_gain_db = 0.0  # one offset per sample, uniform within plus or minus this, dB
    augment.eo_gain = 0.0  # one factor per sample, uniform within 1 plus or minus this
    augment.speckle_looks = 0.0  # number of looks of additional speckle on dB data; 0: none

    # The architecture of the teacher, and of the student unless student.architecture names another one.
    config.model = model = ConfigDict()
    # "hfdnet", "fcn", "unet", "deeplabv3plus", "pspnet", "hrnet", "hrsarnet", "mpresnet" or "segformer_b0".
    model.architecture = DEFAULT
    # The options of all architectures: model.depth, width, align, align_channels, context, rates, ... Each architecture
    # uses its own. docs/architectures.md lists them with meaning and limits; the classes in hfd_jax/models/ declare
    # them.
    model.update(default_options())

    config.loss = loss = ConfigDict()
    loss.ce = 1.0  # weight of the cross-entropy
    loss.dice = 1.0  # weight of the soft Dice loss
    loss.class_weights = "none"  # of the cross-entropy: "none" or "inverse_sqrt" (of the class frequency, mean 1)

    config.optim = optim = ConfigDict()
    optim.learning_rate = 3e-3  # peak learning rate; student.learning_rate may differ
    optim.schedule = "cosine"  # "cosine", "poly" or "constant"
    optim.warmup = 0.05  # share of the steps over which the learning rate increases from 0
    optim.weight_decay = 1e-2  # weight decay of kernels (AdamW)
    optim.clip_norm = 1.0  # maximum norm of the gradient; 0: no clipping

    config.teacher = teacher = ConfigDict()
    teacher.steps = 400  # training steps of stage 1
    # Folder checkpoints/teacher of another run, whose teacher is used instead of training one; "": train it here.
    teacher.checkpoint = ""
    # Checkpoint of the teacher to use: "latest", or "best" (mIoU on the validation split, which uses its labels).
    teacher.which = "latest"
    # Computation dtype of the frozen teacher in stage 2; "": as in training. "bfloat16" is cheaper on GPU and TPU.
    teacher.dtype = ""
    # File written by tools.import_weights with the encoder to start from; "": random weights. model.width and
    # model.depth must match. In the stem, a band with the name of a band in the file (R, G, B, or B4, B3, B2) takes the
    # kernel of that band; any other takes the mean over all bands. Scaling preserves the sum over bands. The input is
    # standardised with the statistics of this data set, not with those of ImageNet.
    teacher.pretrained = ""

    config.student = student = ConfigDict()
    student.steps = 400  # training steps of stage 2 and of each baseline
    # Peak learning rate of the student and of each SAR baseline; 0: optim.learning_rate, as for the teacher.
    student.learning_rate = 0.0
    student.width = 0  # model.width of the student and of each SAR baseline; 0: the teacher's
    student.init = "random"  # "random", or "teacher" to start from the teacher's weights
    student.architecture = ""  # one of those of model.architecture; "": the same as the teacher's
    # As teacher.pretrained, for the student. To keep results comparable, it also applies to each SAR baseline that
    # would otherwise start from random weights.
    student.pretrained = ""

    # Distillation in stage 2. Each loss is a mean over valid pixels and samples, and a weight "as published" refers to
    # such a mean; the method's file in hfd_jax/distill/ gives its source. Taps are features: any of C2, C3, C4, C5
    # (encoder) and A (aggregated).
    config.distill = distill = ConfigDict()
    # Methods to use, any of those below; their losses are added. () disables distillation.
    distill.method = ("hfd",)
    distill.warmup = 0.1  # share of the steps over which the weights of all methods increase from 0
    # Upper limit of the share of distillation in the gradient with respect to the compared features, 0 to 1; 1: none.
    distill.max_share = 0.5
    # Minimum confidence of the teacher for a pixel to be distilled: its probability of the label where that is known,
    # of its most likely class elsewhere; 0: every pixel is distilled.
    distill.min_confidence = 0.0

    # One block per method, with its weight, taps and further options: distill.hfd.weight, distill.hfd.taps, ...
    # docs/methods.md lists them with meaning and limits; the classes in hfd_jax/distill/ declare them.
    for name, method in METHODS.items():
        distill[name] = defaults(method)

    config.train = train = ConfigDict()
    train.log_every = 25  # steps between lines of the log
    # Steps between evaluations on the validation split, a multiple of checkpoint_every; -1: at every checkpoint if the
    # data set has a validation split; 0: never.
    train.eval_every = -1
    train.checkpoint_every = 200  # steps between checkpoints; the last step is always saved
    train.keep_checkpoints = 2  # number of latest checkpoints to keep, in addition to the best one
    # Steps with a loss or gradient that is not finite are skipped and logged. The run ends after this many in a row.
    train.max_bad_steps = 10
    train.remat = False  # recompute blocks in the backward pass instead of storing them: less memory, more time

    config.eval = evaluation = ConfigDict()
    evaluation.split = "test"  # split to evaluate after training
    evaluation.batch_size = 16  # a multiple of the number of devices
    evaluation.window = 0  # side length of the windows into which a tile is cut, pixels; 0: whole tiles up to 1024
    # Checkpoint to evaluate: "latest", or "best" (mIoU on the validation split, which uses its labels).
    evaluation.checkpoint = "latest"
    evaluation.panels = 6  # tiles in the figure

    return config.lock()
