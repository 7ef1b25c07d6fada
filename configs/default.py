"""Every field there is, with its meaning, unit and choices. Other configs start from this one and change what differs.

tools/env python main.py --config=configs/quickstart.py --workdir=runs/quickstart --config.distill.hfd.weight=5.0
"""

from ml_collections import ConfigDict

from hfd_jax.core.options import defaults
from hfd_jax.distill.registry import METHODS
from hfd_jax.models.registry import DEFAULT, default_options


def get_config() -> ConfigDict:
    config = ConfigDict()

    # What to run: "teacher" (stage 1), "student" (stage 2) or "all" (both). Later stages may be run in the same
    # workdir.
    config.stage = "all"
    # Networks trained on SAR beside the HFD student, on the same budget and seed, from the labelled pairs alone; none
    # distils: "sar_only" (the student from scratch), "teacher_init" (the student from the teacher's weights), and
    # any architecture by name (see model.architecture).
    config.baselines = ()
    # Initialisation, order, crops, augmentation, choice of labels. Same config and seed, same numbers.
    config.seed = 0
    # Computation of the networks: "float32" or "bfloat16" (parameters, batch statistics and losses stay float32).
    config.dtype = "float32"
    # "jit" (sharded over all devices) or "pmap"; both give the same losses.
    config.parallel = "jit"
    # This process is one of several of the same run, on one or more hosts; JAX finds the others (docs/cluster.md).
    config.distributed = False

    config.data = data = ConfigDict()
    # A prepared data set, as tools.prepare_data printed it ("folder/my_data"), or "scenes": simulated, made on first
    # use.
    data.name = "scenes"
    # Root of the prepared data sets.
    data.dir = "data"
    # Bands by name, in the order the network sees them; () takes all.
    data.sar_bands = ()
    data.eo_bands = ()
    # Edge of a training crop, pixels; a multiple of 32.
    data.crop = 64
    # Pairs per step, all devices together; a multiple of their number.
    data.batch_size = 16
    # Share of the training labels that are used, 0 to 1; the other pairs count as unlabelled. Chosen by the seed.
    data.label_share = 1.0
    # Share of a distilling student's batch that is labelled, when there are unlabelled pairs. (Others see labelled
    # pairs only.)
    data.labelled_per_batch = 0.25
    # Reading: threads of this process, and further processes (0: none).
    data.threads = 4
    data.workers = 0

    # The simulated data set (data.name = "scenes").
    data.scenes = scenes = ConfigDict()
    scenes.size = 64  # edge of a tile, pixels
    scenes.pixel_size = 1.0  # metres
    scenes.looks = 1.0  # of the speckle
    scenes.incidence = 38.0  # of the radar against the vertical, degrees
    scenes.misregistration = 0.0  # shift of the optical image, pixels
    scenes.unlabelled_share = 0.0  # of the training tiles
    scenes.seed = 0  # of the scenes, independent of config.seed
    scenes.train, scenes.validation, scenes.test = 600, 100, 200  # tiles

    # Input, the same in training and use.
    config.normalise = normalise = ConfigDict()
    normalise.sar_filter = "none"  # "none" or "lee" (7 x 7)
    normalise.sar_looks = 1.0  # number of looks of the images, which the filter needs to know
    normalise.clip = False  # cut to the 1st and 99th percentile of the training pixels

    # Training only.
    config.augment = augment = ConfigDict()
    augment.flips = True  # never along the data set's look axis: layover and shadow would turn round
    augment.sar_gain_db = 0.0  # one offset per sample, uniform within plus or minus this, dB
    augment.eo_gain = 0.0  # one factor per sample, uniform within 1 plus or minus this
    augment.speckle_looks = 0.0  # extra speckle of so many looks on dB data; 0: none

    # The architecture that teacher and student share, unless student.architecture names another one.
    config.model = model = ConfigDict()
    # "hfdnet", "fcn", "unet", "deeplabv3plus", "pspnet", "hrnet", "hrsarnet", "mpresnet" or "segformer_b0".
    model.architecture = DEFAULT
    # The options of all architectures, each of which uses its own: model.depth, width, align, align_channels, context,
    # rates, ... docs/architectures.md lists them with meaning and limits; the class in hfd_jax/models/ declares them.
    model.update(default_options())

    config.loss = loss = ConfigDict()
    loss.ce = 1.0  # weight of the cross-entropy
    loss.dice = 1.0  # weight of the soft Dice loss
    loss.class_weights = "none"  # of the cross-entropy: "none" or "inverse_sqrt" (of the class frequency, mean 1)

    config.optim = optim = ConfigDict()
    optim.learning_rate = 3e-3  # peak
    optim.schedule = "cosine"  # "cosine", "poly" or "constant"
    optim.warmup = 0.05  # share of the steps over which the rate grows from 0
    optim.weight_decay = 1e-2  # of kernels (AdamW)
    optim.clip_norm = 1.0  # of the gradient; 0: no clipping

    config.teacher = teacher = ConfigDict()
    teacher.steps = 400  # of stage 1
    # Take the teacher from another run (its folder checkpoints/teacher) instead of training one here.
    teacher.checkpoint = ""
    # Which of its checkpoints teaches: "latest", or "best" (mIoU on the validation split, which costs its labels).
    teacher.which = "latest"
    # Computation of the frozen teacher in stage 2; "": as it was trained. "bfloat16" is cheaper on GPU and TPU.
    teacher.dtype = ""
    # Encoder to start from: a file that tools.import_weights wrote; "": random. model.width and model.depth must be its
    # own. The stem: a band of the name of one of the file's (R, G, B, also as B4, B3, B2) takes that band's kernel,
    # every other one the mean of all; scaled so that the sum over bands stays. The input is standardised with the
    # statistics of this data set's bands, not with ImageNet's.
    teacher.pretrained = ""

    config.student = student = ConfigDict()
    student.steps = 400  # of stage 2, and of every baseline
    student.init = "random"  # "random", or "teacher": start from the teacher's weights
    student.architecture = ""  # "": the teacher's, model.architecture; or another of those
    # As teacher.pretrained, for the student and, so that the rows of a table stay comparable, for every SAR baseline
    # that would start at random.
    student.pretrained = ""

    # Stage 2: what the teacher adds to the student's loss. Every loss is a mean over valid pixels and samples, and "as
    # published" a weight for such a mean: hfd_jax/distill/ has a file per method, which says whence. Taps are features,
    # any of C2, C3, C4, C5 (encoder) and A (aggregated).
    config.distill = distill = ConfigDict()
    # Methods, any of those below, whose losses are added; () switches distillation off.
    distill.method = ("hfd",)
    distill.warmup = 0.1  # share of the steps over which their weights grow from 0; ours, for all of them

    # One part per method, with its weight, taps and further options: distill.hfd.weight, distill.hfd.taps, ...
    # docs/methods.md lists them with meaning and limits; the class in hfd_jax/distill/<method>.py declares them.
    for name, method in METHODS.items():
        distill[name] = defaults(method)

    config.train = train = ConfigDict()
    train.log_every = 25  # steps between lines of the log
    train.eval_every = 0  # steps between evaluations on the validation split; 0: never
    train.checkpoint_every = 200  # steps between checkpoints; the last step always has one
    train.keep_checkpoints = 2  # latest ones; the best one stays beside them
    # A step with a loss or gradient that is not finite is skipped and logged; so many in a row end the run.
    train.max_bad_steps = 10
    train.remat = False  # compute blocks again in the backward pass instead of keeping them: less memory, more time

    config.eval = evaluation = ConfigDict()
    evaluation.split = "test"  # evaluated when training ends
    evaluation.batch_size = 16  # a multiple of the number of devices
    evaluation.window = 0  # edge of the windows that a tile is cut into, pixels; 0: whole tiles up to 1024
    # Which checkpoint is evaluated: "latest", or "best" (mIoU on the validation split, which costs its labels).
    evaluation.checkpoint = "latest"
    evaluation.panels = 6  # tiles in the picture

    return config.lock()
