"""Every field there is, with its meaning, unit and choices. Other configs start from this one and change what differs.

tools/env python main.py --config=configs/quickstart.py --workdir=runs/quickstart --config.distill.hfd.weight=5.0
"""

from ml_collections import ConfigDict


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

    # The architecture that teacher and student share, unless student.architecture says otherwise. Every network takes
    # those fields that it has a use for; hfdnet has all of them.
    config.model = model = ConfigDict()
    # "hfdnet", or with depth and width "fcn", "deeplabv3plus", "pspnet" (published with depth 50) and "mpresnet" (34);
    # with width "unet", "hrnet" and "segformer_b0"; "hrsarnet" has one size.
    model.architecture = "hfdnet"
    model.depth = 18  # ResNet-18, 34, 50 or 101
    model.width = 64  # channels of the first stage; 64 is the standard (published) size of every architecture
    model.align = "flow"  # feature alignment: "flow", or "none" for a plain feature pyramid
    model.align_channels = 0  # channels of the alignment module; 0: 2 * width (18, 34) or 4 * width (50, 101)
    model.context = False  # pyramid pooling on the coarsest level
    model.rates = (6, 12, 18)  # deeplabv3plus: rates of its pyramid; one of crop / 16 or more sees a single position

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

    distill.hfd = hfd = ConfigDict()  # heterogeneous feature distillation: adapters, standardised features
    hfd.weight = 17.5  # ours
    hfd.taps = ("C3", "C4", "C5", "A")  # features compared
    hfd.tap_weights = ()  # one per tap; (): A counts as much as four others

    distill.kd = kd = ConfigDict()  # class probabilities, pixel by pixel
    kd.weight = 1.0  # as of Yang et al. 2022
    kd.temperature = 1.0  # its square multiplies the loss
    kd.fade = False  # the weight falls linearly to 0 at the last step, as beside aicsd

    distill.fitnet = fitnet = ConfigDict()  # squared distance through a 1x1 convolution
    fitnet.weight = 10.0  # as published
    fitnet.taps = ("A",)  # features compared

    distill.attention = attention = ConfigDict()  # attention transfer: where features are strong
    attention.weight = 1.2  # published: 10000, with squares that are smaller by the 64 x 128 positions
    attention.taps = ("A",)  # features compared

    distill.cwd = cwd = ConfigDict()  # channels as distributions over positions
    cwd.weight = 3.0  # as published for logits; 50 for a feature
    cwd.temperature = 4.0  # as published; its square multiplies the loss
    cwd.taps = ("logits",)  # "logits" or features
    cwd.tap_weights = ()  # one per tap; () for equal weights

    distill.skd = skd = ConfigDict()  # similarities between the nodes of an image (pair-wise structure)
    skd.weight = 10.0  # as published for nodes of few positions
    skd.nodes = 16  # along either axis, at most; a node is the mean of a cell of positions
    skd.taps = ("A",)  # features compared

    distill.ifvd = ifvd = ConfigDict()  # cosine between a position and the mean of its class; labelled pairs alone
    ifvd.weight = 200.0  # as published
    ifvd.taps = ("A",)  # features compared

    distill.nfd = nfd = ConfigDict()  # standardised features
    nfd.weight = 10.0  # as of tap A within hfd; the published one was not at hand
    nfd.taps = ("A",)  # features compared

    distill.cirkd = cirkd = ConfigDict()  # similarities across images, and to earlier ones in queues per class
    cirkd.weight = 1.0  # as published, of the whole and of its part within the batch
    cirkd.pixel_weight = 0.1  # as published, of the part of single positions in the queue
    cirkd.region_weight = 0.1  # as published, of the part of class means in the queue
    cirkd.temperature = 0.1  # as published, of similarities
    cirkd.tap = "A"  # feature compared
    cirkd.nodes = 8  # along either axis, at most; a node is the mean of a cell of positions
    cirkd.pixels = 2000  # length of a class's queue of single positions; published: 20000
    cirkd.regions = 200  # length of a class's queue of class means; published: 2000
    # So many entries of all classes' queues are compared with in a step, as published.
    cirkd.contrasted_pixels, cirkd.contrasted_regions = 4096, 1024

    distill.aicsd = aicsd = ConfigDict()  # divergences between the classes' distributions over positions
    aicsd.weight = 0.002  # ours; the published one belongs to another normalisation
    aicsd.temperature = 1.0  # of the distributions

    distill.mgd = mgd = ConfigDict()  # the teacher's feature, generated from a part of the student's
    mgd.weight = 168.0  # published: 2e-5 of a sum over 2048 channels of 64 x 64 positions
    mgd.masked = 0.75  # share of positions that are left out, as published
    mgd.taps = ("A",)  # features compared; published: C5

    distill.fakd = fakd = ConfigDict()  # class probabilities, for all features that vary as their class does
    fakd.weight = 0.2  # ours; the published one was not at hand
    fakd.strength = 0.5  # of the variation, ours; 0: kd

    distill.disoptnet = disoptnet = ConfigDict()  # an optical branch on the student's feature, and its fusion
    disoptnet.weight = 1.0  # as published
    disoptnet.pixel_weight = 8.0  # of the teacher's probabilities within the loss; published: 1, summed over 8 images
    disoptnet.tap = "A"  # feature that the branch starts from and imitates

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
