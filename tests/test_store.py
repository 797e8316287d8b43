from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from techniques import programs

from planner import store
from planner.program import Gone, Setting, Unit, Variant


def test_programs_come_back_as_they_were(tmp_path: Path) -> None:
    variant = Variant(channels_last=frozenset({"vae"}), tile=512, settings=(Setting("micro_batch", 2, "denoiser"),))
    plain = programs.program(programs.unet(rows=2), programs.vae(), unet=(programs.attention(),))
    unet, vae = plain.components
    lasting = replace(unet, tables=(Unit(("embed",), (0,)),), lasting=("embed",))
    plain = replace(plain, components=(lasting, vae)).with_course((Gone(0), *plain.events))
    several = (plain, replace(plain, variant=variant))
    store.save(tmp_path, "key", several)
    again = store.load(tmp_path, "key")
    assert [replace(program, family="") for program in again] == list(several)
    assert store.load(tmp_path, "another") == ()


def test_a_key_says_what_was_recorded() -> None:
    assert store.key_of("sdxl", {"height": 512}) == store.key_of("sdxl", {"height": 512})
    assert store.key_of("sdxl", {"height": 512}) != store.key_of("sdxl", {"height": 1024})


def test_a_file_that_cannot_be_read_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "key.json").write_text("[{")
    assert store.load(tmp_path, "key") == ()
