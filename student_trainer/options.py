"""What each option of `student-trainer train` says in the help; their names are the fields of `TrainConfig`."""

from pathlib import Path
from typing import Annotated

from typer import Option

SOURCE, ROWS, VIEWS, TRAINING, RUNNING = "Teacher answers", "Rows", "Views and images", "Training", "Running"

Dataset = Annotated[str, Option(help="digits, torchvision:CIFAR100, folder:PATH or python:FILE.py:FUNCTION")]
Student = Annotated[str, Option(help="zoo:resnet8, torchvision:NAME, timm:NAME or python:FILE.py:FUNCTION")]
Out = Annotated[Path, Option(help="folder of the run")]
Loss = Annotated[
    str, Option(help="ce (labels only), kl, mse, dist, ckd, ... (a wrong name lists all); kl+rkd is a sum")
]
Hyper = Annotated[list[str] | None, Option("--set", help="a hyper-parameter of the loss, such as temperature=4")]
CeWeight = Annotated[float | None, Option(help="weight of cross-entropy; default: as the loss's authors")]
KdWeight = Annotated[float | None, Option(help="weight of the loss; default: as its authors")]

Cache = Annotated[str | None, Option(help="folder of a cache, or http://HOST:PORT of a server", rich_help_panel=SOURCE)]
ExpectTeacher = Annotated[str | None, Option(help="id that the answers must come from", rich_help_panel=SOURCE)]
ApiKeyFile = Annotated[Path | None, Option(help="file with the server's key", rich_help_panel=SOURCE)]
RunName = Annotated[str, Option("--run", help="the server's run that pays for fetched rows", rich_help_panel=SOURCE)]
Mirror = Annotated[Path | None, Option(help="local cache of fetched rows; default OUT/cache", rich_help_panel=SOURCE)]
Teacher = Annotated[
    str | None, Option(help="run this teacher online: every image of every step is a call", rich_help_panel=SOURCE)
]
Weights = Annotated[Path | None, Option(help="weights of the online teacher", rich_help_panel=SOURCE)]

Sample = Annotated[int | None, Option(help="train on N drawn rows; fewer are a part of more", rich_help_panel=ROWS)]
SampleSeed = Annotated[int, Option("--seed-sample", help="seed of that draw", rich_help_panel=ROWS)]
RowsFile = Annotated[Path | None, Option(help="file of rows: .npy, or text with whole numbers", rich_help_panel=ROWS)]
MissingRows = Annotated[
    str | None,
    Option(
        help="rows without an answer: error (default for a folder), skip them, label-only (their labels count in"
        " cross-entropy), fetch (default for a server)",
        rich_help_panel=ROWS,
    ),
]
AnswerRows = Annotated[Path | None, Option(help="file with the only rows whose answers are used", rich_help_panel=ROWS)]
Val = Annotated[float, Option(help="part of the rows held out for validation; 0: none", rich_help_panel=ROWS)]

ValRows = Annotated[Path | None, Option(help="file of the rows held out, instead of --val", rich_help_panel=ROWS)]
Test = Annotated[bool, Option(help="test at the end; --resume tests a finished run later", rich_help_panel=ROWS)]
TestSample = Annotated[int | None, Option(help="test on N drawn test images", rich_help_panel=ROWS)]

StudentViewsOption = Annotated[
    str | None,
    Option(
        help="what the student sees: same (the teacher's pixels; default with a teacher), fresh (a new crop and flip"
        " per row and epoch; default for ce), clean (no augmentation)",
        rich_help_panel=VIEWS,
    ),
]
TeacherViews = Annotated[
    str, Option(help="views to use answers of, as 0 or 1-162; of several, one per row and epoch", rich_help_panel=VIEWS)
]
ViewPolicyOption = Annotated[
    str | None,
    Option(
        "--view-policy",
        help="what views 1, 2, ... are: crop4flip and the like, randaug, rrc, cutmix or mixup; default: what the cache"
        " says, else the data set's own crops",
        rich_help_panel=VIEWS,
    ),
]
ImageSize = Annotated[int | None, Option(help="resize and cut the student's images to N x N", rich_help_panel=VIEWS)]
DataRoot = Annotated[Path | None, Option(help="folder of torchvision's data sets; default data", rich_help_panel=VIEWS)]
Download = Annotated[bool, Option("--download", help="allow torchvision to download", rich_help_panel=VIEWS)]

Epochs = Annotated[int, Option(help="passes over the rows", rich_help_panel=TRAINING)]
Batch = Annotated[int, Option(help="images per step", rich_help_panel=TRAINING)]
LearningRate = Annotated[float, Option(help="learning rate", rich_help_panel=TRAINING)]
Momentum = Annotated[float, Option(help="momentum of SGD", rich_help_panel=TRAINING)]
Nesterov = Annotated[bool, Option("--nesterov", help="Nesterov's momentum", rich_help_panel=TRAINING)]
WeightDecay = Annotated[float, Option(help="L2 decay of all parameters", rich_help_panel=TRAINING)]
ScheduleOption = Annotated[
    str, Option(help="step, cosine or plateau (early stopping in stages)", rich_help_panel=TRAINING)
]
Milestones = Annotated[
    str, Option(help="epochs, or parts of all epochs (below 1), after which the rate falls", rich_help_panel=TRAINING)
]
Gamma = Annotated[float, Option(help="factor at a milestone", rich_help_panel=TRAINING)]
Patience = Annotated[
    int, Option(help="plateau: epochs without a better validation accuracy that end a stage", rich_help_panel=TRAINING)
]
Stages = Annotated[int, Option(help="plateau: learning rates in all", rich_help_panel=TRAINING)]
Seed = Annotated[int, Option(help="seed of split, initialisation and order", rich_help_panel=TRAINING)]

PrecisionOption = Annotated[str, Option(help="float32, bfloat16 or float16", rich_help_panel=RUNNING)]
Compile = Annotated[bool, Option("--compile", help="compile the student (torch.compile)", rich_help_panel=RUNNING)]
Device = Annotated[str, Option(help="auto, cpu or cuda", rich_help_panel=RUNNING)]
Devices = Annotated[int, Option(help="processes of data-parallel training", rich_help_panel=RUNNING)]
Threads = Annotated[int | None, Option(help="CPU threads; default: cores - 1", rich_help_panel=RUNNING)]
Resume = Annotated[bool, Option("--resume", help="continue the run in OUT, or start it", rich_help_panel=RUNNING)]
CheckpointEvery = Annotated[
    float, Option("--checkpoint-every", help="least seconds between states for --resume", rich_help_panel=RUNNING)
]
Tensorboard = Annotated[bool, Option(help="write TensorBoard logs", rich_help_panel=RUNNING)]
