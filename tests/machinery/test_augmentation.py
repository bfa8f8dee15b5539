"""Augmentation: a pure function, masks that stay on their images, refusals; and the choices of its group."""

import warnings
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from foldwise.data.augmentation import Augmentation, build_transforms, leaves
from foldwise.data.fields import Field
from foldwise.errors import Refusal
from foldwise.settings import list_choices

CONFIGS = list(list_choices("augmentation").values())
SIZE = (48, 40)
FIELDS = {"image": Field("image"), "target": Field("mask", train_only=True)}


def load(path: Path) -> Augmentation:
    OmegaConf.register_new_resolver("image_hw", lambda size: list(size), replace=True)
    config = OmegaConf.merge({"data": {"image_size": list(SIZE)}}, {"augmentation": OmegaConf.load(path)})
    return pipeline(instantiate(config.augmentation.transforms, _convert_="all"))


def pipeline(transforms: list[A.BasicTransform | A.BaseCompose], ignore_index: int = 255) -> Augmentation:
    return Augmentation(transforms, FIELDS, ignore_index)


def augment(
    augmentation: Augmentation, image: np.ndarray, mask: np.ndarray | None, seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    sample = {"image": image} if mask is None else {"image": image, "target": mask}
    result = augmentation(sample, seed)
    assert result.keys() == sample.keys()
    return result["image"], result.get("target")


def picture(channels: int = 3, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (*SIZE, channels)
    return rng.integers(0, 256, shape, np.uint8) if dtype == np.uint8 else rng.random(shape, np.float32)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize(("channels", "dtype"), [(3, np.uint8), (1, np.uint8), (4, np.float32), (8, np.float32)])
def test_choices_take_any_channels(path: Path, channels: int, dtype: type) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # albumentations only warns of an argument that it does not know
        augmentation = load(path)
    augmentation.check(channels, dtype, SIZE)
    image, mask = augment(augmentation, picture(channels, dtype), np.zeros(SIZE, np.uint8), seed=5)
    assert image.dtype == dtype and image.shape[2] == channels and mask is not None and mask.shape == image.shape[:2]


def test_light_does_not_flip() -> None:
    """Digits and letters lose their meaning in a mirror: a bright left half stays on the left."""
    light = load(next(path for path in CONFIGS if path.stem == "light"))
    image = np.zeros((*SIZE, 1), np.uint8)
    image[:, : SIZE[1] // 2] = 200
    image[: SIZE[0] // 2] += 40
    for seed in range(20):
        out = augment(light, image, None, seed)[0].astype(float)
        left, right = np.array_split(out, 2, axis=1)
        top, bottom = np.array_split(out, 2, axis=0)
        assert left.mean() > right.mean() + 50 and top.mean() > bottom.mean()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 4, 8])
def test_aerial_multiplies_and_shifts_each_channel_by_itself(channels: int, dtype: type) -> None:
    aerial = load(next(path for path in CONFIGS if path.stem == "aerial"))
    chosen = [
        leaf for leaf in leaves(aerial.compose) if type(leaf).__name__ in ("MultiplicativeNoise", "AdditiveNoise")
    ]
    full = 255 if dtype == np.uint8 else 1.0
    flat = np.full((*SIZE, channels), 0.5 * full, dtype)
    for leaf, least, most in zip(chosen, (0.8, -0.1), (1.2, 0.1), strict=True):
        leaf.p = 1
        for seed in range(5):
            out = augment(pipeline([leaf]), flat, None, seed)[0].astype(float)
            changes = out[0, 0] / flat[0, 0] if least > 0 else (out[0, 0] - flat[0, 0]) / full
            assert (np.ptp(out, axis=(0, 1)) <= 0.01 * full).all()  # one number a channel
            assert len(np.unique(changes)) > channels / 2  # of 8 bits, two may be the same
            assert (changes >= least - 0.01).all() and (changes <= most + 0.01).all()


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem != "none"], ids=lambda path: path.stem)
def test_pure_function_of_its_arguments(path: Path) -> None:
    first, second = load(path), load(path)
    image, mask = picture(), picture(1, seed=1)[..., 0]
    before = image.copy(), mask.copy()
    results = [augment(first, image, mask, seed) for seed in range(12)]
    # another object, another order, other calls in between
    for seed in reversed(range(12)):
        for again, first_time in zip(augment(second, image, mask, seed), results[seed], strict=True):
            assert again is not None and first_time is not None and np.array_equal(again, first_time)
    assert len({result[0].tobytes() for result in results}) >= {"flip": 2, "symmetries": 4, "geometric": 6}.get(
        path.stem, 9
    )
    assert np.array_equal(image, before[0]) and np.array_equal(mask, before[1])


def test_decisions_are_independent() -> None:
    """Two transforms of probability 0.5 meet in a quarter of the cases, also inside compositions."""
    augmentation = pipeline([A.HorizontalFlip(p=0.5), A.Sequential([A.VerticalFlip(p=0.5)], p=1)])
    image = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    outcomes = [augment(augmentation, image, None, seed)[0].tobytes() for seed in range(400)]
    counts = [outcomes.count(outcome) for outcome in set(outcomes)]
    assert len(counts) == 4 and min(counts) > 60  # 100 expected, standard deviation 9


def test_one_of_draws_from_the_seed() -> None:
    augmentation = pipeline([A.OneOf([A.HorizontalFlip(), A.VerticalFlip(), A.Transpose()], p=1)])
    image = np.arange(9, dtype=np.uint8).reshape(3, 3, 1)
    outcomes = [augment(augmentation, image, None, seed)[0].tobytes() for seed in range(60)]
    assert len(set(outcomes)) == 3
    assert outcomes == [augment(augmentation, image, None, seed)[0].tobytes() for seed in range(60)]


@pytest.mark.parametrize(
    "transform",
    [
        A.D4(p=1),
        A.Affine(rotate=(-40, 40), translate_percent=(-0.2, 0.2), scale=(0.7, 1.3), p=1),
        A.Perspective(p=1),
        A.GridDistortion(p=1),
        A.ElasticTransform(alpha=30, sigma=5, p=1),
        A.RandomResizedCrop(size=(56, 72), p=1),
        A.Resize(33, 47, p=1),
        A.SafeRotate(p=1),
        A.OneOf([A.Sequential([A.HorizontalFlip(p=1), A.Affine(rotate=(-45, 45), p=1)])], p=1),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_mask_stays_on_its_image(transform: A.BasicTransform) -> None:
    """A mask made from the image is still the threshold of the image afterwards, exposed pixels aside."""
    rows, columns = np.mgrid[:96, :80]
    blob = (rows - 60) ** 2 / 700 + (columns - 25) ** 2 / 250 < 1
    blob |= (rows < 30) & (columns > 45) & (rows > 12)
    mask = blob.astype(np.uint8)
    image = np.repeat((mask * 200 + 20)[..., None], 3, axis=2)
    augmentation = pipeline([transform], ignore_index=77)
    wrong_shifted = []
    for seed in range(6):
        out, out_mask = augment(augmentation, image, mask, seed)
        assert out_mask is not None and out_mask.dtype == np.uint8 and set(np.unique(out_mask)) <= {0, 1, 77}
        seen = out_mask != 77
        bright = out[..., 0] > 120
        assert seen.mean() > 0.3
        # only pixels cut by the edge of the shape may differ
        edge = bright ^ np.roll(bright, 1, 0) | bright ^ np.roll(bright, 1, 1)
        edge |= bright ^ np.roll(bright, -1, 0) | bright ^ np.roll(bright, -1, 1)
        wrong = ((out_mask == 1) != bright) & seen
        assert not (wrong & ~edge).any()
        assert wrong.sum() <= 0.5 * edge.sum()
        wrong_shifted.append((((np.roll(out_mask, 3, 1) == 1) != bright) & seen & ~edge).sum())
    assert min(wrong_shifted) > 0  # the same test notices a shift of three pixels


def test_resize_does_not_shift_the_mask() -> None:
    """Of the edge pixels as many fall to one side as to the other; INTER_NEAREST would shift by half a pixel."""
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 1
    out, out_mask = augment(pipeline([A.Resize(21, 21, p=1)]), np.repeat(mask[..., None] * 255, 3, 2), mask, 0)
    assert out_mask is not None
    assert np.array_equal(out_mask, out_mask[::-1, ::-1])
    assert np.array_equal(out_mask, (out[..., 0] > 127))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_exposed_pixels_get_the_ignore_index(dtype: type) -> None:
    shift = A.Affine(translate_px={"x": 7, "y": 0}, p=1)
    for nested in ([shift], [A.Sequential([A.OneOf([shift], p=1)], p=1)]):
        mask = augment(pipeline(nested), picture(), np.ones(SIZE, dtype), 3)[1]
        assert mask is not None and mask.dtype == dtype
        assert (mask[:, :7] == 255).all() and (mask[:, 7:] == 1).all()


def test_ignore_index_beyond_uint8() -> None:
    shift = pipeline([A.Affine(translate_px={"x": 7, "y": 0}, p=1)], 1000)
    mask = augment(shift, picture(), np.ones(SIZE, np.uint8), 3)[1]
    assert mask is not None and mask.dtype == np.uint16 and set(np.unique(mask)) == {1, 1000}
    with pytest.raises(Refusal, match="ignore_index"):
        pipeline([], ignore_index=-100)


def test_dropout_leaves_the_mask() -> None:
    image, mask = augment(pipeline([A.CoarseDropout(p=1)]), picture() | 1, np.ones(SIZE, np.uint8), 0)
    assert (image == 0).any() and mask is not None and (mask == 1).all()


def test_check_names_every_transform() -> None:
    augmentation = pipeline(
        [
            A.HorizontalFlip(),
            A.OneOf([A.HueSaturationValue(), A.Sequential([A.ToSepia()])]),
            A.Normalize(),
            A.ToGray(num_output_channels=1),
        ]
    )
    with pytest.raises(Refusal) as caught:
        augmentation.check(8, np.uint8, SIZE)
    for name in ("HueSaturationValue", "ToSepia", "Normalize", "ToGray"):
        assert name in str(caught.value)
    assert "HorizontalFlip" not in str(caught.value)
    with pytest.raises(Refusal, match="ToGray gives"):
        pipeline([A.ToGray(num_output_channels=1)]).check(3, np.uint8, SIZE)
    with pytest.raises(Refusal, match="Normalize"):
        pipeline([A.Normalize()]).check(3, np.float32, SIZE)


def test_check_leaves_the_pipeline_as_it_was() -> None:
    augmentation = pipeline([A.OneOf([A.HorizontalFlip(p=0.1), A.VerticalFlip(p=0.1)], p=0.5)])
    before = [augment(augmentation, picture(), None, seed)[0].tobytes() for seed in range(8)]
    augmentation.check(3, np.uint8, SIZE)
    assert before == [augment(augmentation, picture(), None, seed)[0].tobytes() for seed in range(8)]
    assert [leaf.p for leaf in leaves(augmentation.compose)] == [0.1, 0.1]


@pytest.mark.filterwarnings("ignore")
def test_unknown_argument_is_refused() -> None:
    with pytest.raises(Refusal, match="Affine has no argument rotation"):
        pipeline([A.OneOf([A.Affine(rotation=10)])])


def places(channels: int = 1, low: int = 0) -> np.ndarray:
    """A picture of float32 whose values rise along both sides, so that they tell where a pixel was."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)
    ramp = (0.6 * rows / SIZE[0] + 0.4 * columns / SIZE[1]) / 2 + 0.25
    return np.repeat(ramp[..., None], channels, axis=2) + low


MANY = {
    "image": Field("image"),
    "other": Field("image"),
    "target": Field("mask", train_only=True),
    "depth": Field("map"),
    "age": Field("values"),
}


@pytest.mark.parametrize(
    "transforms",
    [
        [A.D4(p=1)],
        [A.GaussNoise(std_range=(0.001, 0.001), p=0.5), A.D4(p=1), A.Affine(rotate=(-40, 40), p=0.7)],
        [A.OneOf([A.Perspective(p=1), A.ElasticTransform(alpha=30, sigma=5, p=1)], p=1), A.HorizontalFlip(p=0.5)],
        [A.RandomResizedCrop(size=(56, 72), p=1), A.SafeRotate(p=0.5)],
    ],
    ids=["d4", "noise and affine", "one of", "crop"],
)
def test_all_spatial_fields_move_together(transforms: list[A.BasicTransform]) -> None:
    """Each field says where its pixels were, and all of them must agree."""
    ramp = places()
    sample = {
        "image": ramp,
        "other": ramp.copy(),
        "target": np.rint(ramp[..., 0] * 100).astype(np.uint8),
        "depth": np.concatenate([ramp * 10, ramp * -4], axis=2),
        "age": np.float32(3),
    }
    augmentation, moved = Augmentation(transforms, MANY), 0
    for seed in range(8):
        out = augmentation(sample, seed)
        assert out.keys() == sample.keys() and out["age"] == 3
        seen = out["target"] != 255
        assert seen.mean() > 0.3 and out["depth"].dtype == np.float32
        image = out["image"][..., 0]
        # inside, where no pixel is mixed with what lies outside of the picture
        inside = np.pad(seen, 1)
        inside = np.all([np.roll(inside, shift, axis) for axis in (0, 1) for shift in (-1, 0, 1)], axis=0)[1:-1, 1:-1]
        for name, value, tolerance in (
            ("other", out["other"][..., 0], 0.01),
            ("target", out["target"] / 100, 0.025),
            ("depth", out["depth"][..., 0] / 10, 0.01),
            ("depth", out["depth"][..., 1] / -4, 0.01),
        ):
            assert np.abs(value - image)[inside].max() < tolerance, name
        moved += image.shape != SIZE or np.abs(image - ramp[..., 0]).max() > 0.03
    assert moved >= 5


def test_maps_are_interpolated_and_nothing_where_geometry_exposes_them() -> None:
    depth = np.repeat(np.arange(SIZE[1], dtype=np.float32)[None, :, None], SIZE[0], axis=0) + 100
    sample = {"image": picture(), "depth": depth, "target": np.ones(SIZE, np.uint8)}
    shift = Augmentation([A.Affine(translate_px={"x": 7, "y": 0}, p=1)], MANY)(sample, 3)
    assert (shift["depth"][:, :7] == 0).all() and (shift["target"][:, :7] == 255).all()
    np.testing.assert_allclose(shift["depth"][:, 7:], depth[:, :-7], atol=1e-4)
    half = Augmentation([A.Resize(SIZE[0], 2 * SIZE[1], p=1)], MANY)(sample, 3)["depth"]
    expected = np.clip((np.arange(2 * SIZE[1]) + 0.5) / 2 - 0.5, 0, SIZE[1] - 1) + 100
    np.testing.assert_allclose(half[0, :, 0], expected, atol=1e-4)  # between two pixels, their mean


def test_images_of_a_stack_move_alike() -> None:
    fields = {"stack": Field("image", ragged=True), "seen": Field("mask"), "image": Field("image")}
    augmentation = Augmentation([A.D4(p=1), A.RandomResizedCrop(size=(30, 30), p=1)], fields)
    ramp = places()
    stack = [ramp, ramp[:, :, [0]] + 0.1, np.ascontiguousarray(ramp[::1])]
    sample = {"stack": stack, "image": ramp, "seen": [np.rint(each[..., 0] * 100).astype(np.uint8) for each in stack]}
    for seed in range(6):
        out = augmentation(sample, seed)
        assert len(out["stack"]) == len(out["seen"]) == 3
        np.testing.assert_allclose(out["stack"][0], out["image"])
        np.testing.assert_allclose(out["stack"][1], out["image"] + 0.1, atol=1e-5)
        for image, mask in zip(out["stack"], out["seen"], strict=True):
            assert np.abs(image[..., 0] - mask / 100).max() < 0.04


def test_images_of_a_separate_stack_move_each_on_its_own() -> None:
    fields = {"stack": Field("image", ragged=True, separate=True), "seen": Field("mask")}
    augmentation = Augmentation([A.D4(p=1), A.RandomResizedCrop(size=(30, 30), p=1)], fields)
    sample = {"stack": [places()] * 4, "seen": [np.rint(places()[..., 0] * 100).astype(np.uint8)] * 4}
    first, again = (augmentation(sample, 3) for _ in range(2))
    assert all(np.array_equal(*pair) for pair in zip(first["stack"], again["stack"], strict=True))
    for image, mask in zip(first["stack"], first["seen"], strict=True):
        assert np.abs(image[..., 0] - mask / 100).max() < 0.04
    assert len({image.tobytes() for image in first["stack"]}) == 4
    alone = augmentation({name: value[:1] for name, value in sample.items()}, 3)
    np.testing.assert_array_equal(alone["stack"][0], first["stack"][0])


def test_what_has_no_image_of_its_size_is_refused() -> None:
    with pytest.raises(Refusal, match=r"depth must have the size of an image .*image \(48, 40\), depth \(24, 20\)"):
        Augmentation([A.D4()], MANY)({"image": picture(), "depth": np.zeros((24, 20, 1), np.float32)}, 0)


def test_names_that_mean_something_to_albumentations_are_only_names() -> None:
    fields = {name: Field("image") for name in ("images", "volume", "bboxes")} | {"mask": Field("mask")}
    ramp = places()
    sample = {"images": ramp, "volume": ramp.copy(), "bboxes": ramp.copy(), "mask": np.zeros(SIZE, np.uint8)}
    out = Augmentation([A.HorizontalFlip(p=1)], fields)(sample, 0)
    for name in ("images", "volume", "bboxes"):
        np.testing.assert_array_equal(out[name], ramp[:, ::-1])


def test_transforms_that_look_at_the_mask_find_it() -> None:
    """One pixel of a class is in every crop that seeks it, in maps too."""
    mask = np.zeros(SIZE, np.uint8)
    mask[40, 30] = 1
    sample = {"image": picture(), "target": mask, "depth": np.repeat(mask[..., None], 1, 2).astype(np.float32)}
    augmentation = Augmentation([A.CropNonEmptyMaskIfExists(16, 16, p=1)], MANY)
    for seed in range(6):
        out = augmentation(sample, seed)
        assert out["target"].sum() == 1 and np.array_equal(out["depth"][..., 0], out["target"])


def test_images_of_different_channels_and_depths_are_drawn_alike() -> None:
    """Noise is drawn for each shape by itself; where things go must not depend on it."""
    ramp = places()
    sample = {"image": np.repeat(np.rint(ramp * 255).astype(np.uint8), 3, axis=2), "other": ramp}
    noise = A.GaussNoise(std_range=(0.001, 0.001), p=0.5)
    augmentation = Augmentation([noise, A.D4(p=1), A.Affine(rotate=(-40, 40), border_mode=1, p=0.5)], MANY)
    for seed in range(12):
        out = augmentation(sample, seed)
        assert out["image"].dtype == np.uint8 and out["image"].shape[2] == 3
        assert out["other"].dtype == np.float32 and out["other"].shape[2] == 1
        assert np.abs(out["image"] / 255 - out["other"]).max() < 0.02


def test_images_of_different_sizes_are_augmented_alike() -> None:
    """A small one beside a large one is turned as that is, after noise of as many numbers as each has values."""
    ramp = places()
    augmentation = Augmentation([A.GaussNoise(std_range=(0.001, 0.001), p=1), A.D4(p=1)], MANY)
    for seed in range(12):
        out = augmentation({"image": ramp, "other": np.ascontiguousarray(ramp[::2, ::2])}, seed)
        large = out["image"].reshape(out["other"].shape[0], 2, out["other"].shape[1], 2).mean((1, 3))
        assert np.abs(large - out["other"][..., 0]).max() < 0.02


def test_transforms_of_a_configuration_are_albumentations_own() -> None:
    built = build_transforms(
        [{"_target_": "albumentations.OneOf", "transforms": [{"_target_": "albumentations.VerticalFlip"}], "p": 1}]
    )
    assert [type(leaf).__name__ for leaf in leaves(built[0])] == ["VerticalFlip"]
    for target in ("os.system", "albumentations.os", "albumentations.Compose.run", None):
        with pytest.raises(Refusal, match="is not a transform of albumentations"):
            build_transforms([{"_target_": target}])
