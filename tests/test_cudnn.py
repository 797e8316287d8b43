"""cuDNN asked without a GPU; the expected numbers were measured on the virtual GPU with cuDNN 9.24 (torch 2.14.1)."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner import cudnn
from planner.cudnn import Card, Question, workspaces

GIB = 2**30
RTX_3090 = Card("NVIDIA GeForce RTX 3090", (8, 6), 82, 6 * 2**20, 80 * GIB)
MiB = 2**20


def square(dtype: str, images: int, channels: int, out: int, edge: int, kernel: int, *, last: bool = False) -> Question:
    return Question(
        dtype, (images, channels, edge, edge), (out, channels, kernel, kernel), (images, out, edge, edge),
        (1, 1), (kernel // 2, kernel // 2), (1, 1), transposed=False, last=last,
    )  # fmt: skip


@pytest.fixture
def measured() -> None:
    """Only cuDNN 9.24 was measured; others may choose other engines."""
    lib = cudnn.library()
    if lib is None or lib.cudnnGetVersion() // 100 != 924:
        pytest.skip("the numbers are cuDNN 9.24's")


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("question", "mebibytes"),
    [
        (square("float16", 1, 256, 128, 512, 1), 1.5),  # a shortcut that runs without conversion …
        (square("float16", 4, 512, 256, 512, 1), 1536),  # … and one that takes x + y
        (square("float32", 4, 256, 128, 512, 1), 1024),
        (square("float16", 1, 256, 256, 1024, 3), 1025.125),
        (square("float16", 1, 256, 256, 1024, 3, last=True), 0),
        (square("float16", 2, 1280, 1280, 16, 3), 33.1),  # x + w + y and split-K sums
    ],
)
def test_answers_are_what_the_virtual_gpu_takes(question: Question, mebibytes: float) -> None:
    assert workspaces(question, RTX_3090)[0] / MiB == pytest.approx(mebibytes, abs=0.15)


@pytest.mark.usefixtures("measured")
def test_leaner_engines_follow_down_to_none() -> None:
    question = square("float16", 4, 512, 256, 512, 1)
    every = workspaces(question, RTX_3090, every=True)
    assert every[0] == workspaces(question, RTX_3090)[0]
    assert every[-1] == 0
    assert len(every) > 10


@pytest.mark.usefixtures("measured")
def test_what_cudnn_refuses_has_no_answer() -> None:
    wrong = Question("float16", (1, 8, 8, 8), (8, 9, 3, 3), (1, 8, 8, 8), (1, 1), (1, 1), (1, 1), False, False)
    assert workspaces(wrong, RTX_3090) == ()


def test_without_a_library_there_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudnn, "library", lambda: None)
    assert workspaces(square("float16", 1, 256, 128, 512, 1), RTX_3090) == ()


def test_a_library_is_found_where_wheels_put_it_and_too_old_ones_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    class Old:
        def __init__(self, name: str) -> None:
            self.name = name

        def cudnnGetVersion(self) -> int:
            return 90_100 if "lib/" in self.name else 92_400

    monkeypatch.setattr(cudnn.sys, "platform", "linux")
    monkeypatch.setattr(cudnn.importlib.util, "find_spec", lambda name: Spec() if name == "nvidia" else None)
    monkeypatch.setattr(cudnn.ctypes, "CDLL", Old)
    look = cudnn.library.__wrapped__
    assert look() is None
    for folder in ("cudnn/lib", "cudnn/bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "cudnn/bin/libcudnn.so.9").touch()
    assert look().name.endswith("bin/libcudnn.so.9")
    (tmp_path / "cudnn/lib/libcudnn.so.9").touch()
    assert look() is None
