"""The data sets that core offers, through the same hook as any plugin's. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from defend.hookspecs import hookimpl
from defend.options import option, options
from defend.stages import StageSpec

EVERYTHING = "all"
SPLIT_HELP = (
    'the split or sub-folder that is judged (usually test); "all" judges everything, and leaves none to train on'
)
HOLD_OUT_HELP = "hold images out for a split that has none of its own (usually); off, it has none"
CLASS_NAMES_HELP = (
    "a file of the model's classes in its own order, one name a line, or how many there are; one may have no images"
)

FLIPS_HELP = (
    "train victims and adversarial fine-tuners on mirrored images too: for photographs whose mirror image is of the "
    "same class; not for digits, text or signs to the left"
)


@options
class FolderOptions:
    """Options of `imagefolder`."""

    data_dir: str | None = option(
        None, help="the folder: ROOT/CLASS/*.png, or ROOT/{train,val,test}/CLASS/*.png; or a .csv of path,label"
    )
    image_size: int | None = option(
        None, help="side that images are scaled and centre-cropped to; none: the files' own", at_least=8, at_most=2048
    )
    split: str | None = option(None, help=SPLIT_HELP)
    hold_out: bool = option(True, help=HOLD_OUT_HELP)
    class_names: str | None = option(None, help=CLASS_NAMES_HELP)
    flips: bool = option(False, help=FLIPS_HELP)
    workers: int = option(2, help="processes that decode images", at_least=0)


@options
class ArraysOptions:
    """Options of `arrays`."""

    data_dir: str | None = option(
        None, help="a .npz of images and labels (x_test and y_test, ...), or a .npy beside its labels'"
    )
    split: str | None = option(None, help=SPLIT_HELP)
    hold_out: bool = option(True, help=HOLD_OUT_HELP)
    class_names: str | None = option(None, help=CLASS_NAMES_HELP)


@options
class HubOptions:
    """Options of `hf`."""

    data_dir: str | None = option(None, help="its name, for example ylecun/mnist; --dataset hf:NAME is short for it")
    subset: str | None = option(None, help="the configuration of the data set, where it has several")
    image_column: str | None = option(None, help="the column of images (usually the first that holds some)")
    label_column: str | None = option(None, help="the column of labels (usually the first of class labels)")
    image_size: int | None = option(
        None, help="side that images are scaled and centre-cropped to; none: their own", at_least=8, at_most=2048
    )
    split: str | None = option(None, help=SPLIT_HELP)
    hold_out: bool = option(True, help=HOLD_OUT_HELP)
    class_names: str | None = option(None, help=CLASS_NAMES_HELP)
    workers: int = option(2, help="processes that decode images", at_least=0)


@options
class ImageNetOptions:
    """Options of `imagenet`."""

    data_dir: str | None = option(None, help="the folder: ROOT/train/WNID/*.JPEG and ROOT/val/WNID/*.JPEG")
    resize: int = option(256, help="images' shorter side before the crop", at_least=8, at_most=2048)
    image_size: int = option(224, help="images are centre-cropped to this side", at_least=8, at_most=2048)
    class_names: str | None = option(None, help=CLASS_NAMES_HELP)
    workers: int = option(2, help="processes that decode images", at_least=0)


@options
class DownloadedOptions:
    """Options of the data sets that torchvision knows."""

    data_dir: str | None = option(None, help="where the files lie or are downloaded to (default: $DEFEND_DATA_DIR)")


@hookimpl
def defend_datasets() -> Sequence[StageSpec]:
    """digits, mnist, fashion_mnist, cifar10, imagefolder, arrays, hf, imagenet."""
    return [
        StageSpec(
            name="digits",
            summary="1,797 handwritten digits of scikit-learn, 28x28 grey, embedded; 1,097 / 200 / 500",
            build="defend.datasets.digits:build",
        ),
        StageSpec(
            name="mnist",
            summary="MNIST, 28x28 grey; 55,000 / 5,000 / 10,000",
            build="defend.datasets.downloaded:mnist",
            config=DownloadedOptions,
        ),
        StageSpec(
            name="fashion_mnist",
            summary="Fashion-MNIST, 28x28 grey; 55,000 / 5,000 / 10,000",
            build="defend.datasets.downloaded:fashion_mnist",
            config=DownloadedOptions,
        ),
        StageSpec(
            name="cifar10",
            summary="CIFAR-10, 32x32 colour; 45,000 / 5,000 / 10,000",
            build="defend.datasets.downloaded:cifar10",
            config=DownloadedOptions,
        ),
        StageSpec(
            name="imagefolder",
            summary="your own images, one folder a class, or a .csv of path,label; streamed from --data-dir",
            build="defend.datasets.folder:build",
            config=FolderOptions,
        ),
        StageSpec(
            name="arrays",
            summary="your own images and labels as arrays: --dataset FILE.npz, or .npy",
            build="defend.datasets.arrays:build",
            config=ArraysOptions,
        ),
        StageSpec(
            name="hf",
            summary="a data set of images through the library datasets: --dataset hf:NAME",
            build="defend.datasets.hub:build",
            config=HubOptions,
        ),
        StageSpec(
            name="imagenet",
            summary="ImageNet from --data-dir, 224x224 colour, streamed; its validation images are the test split",
            build="defend.datasets.folder:build_imagenet",
            config=ImageNetOptions,
        ),
    ]
