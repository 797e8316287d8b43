from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from techniques import programs

from planner import store
from planner.events import Call, Free, Gone
from planner.program import Recording, Setting, Unit, Variant


def test_programs_come_back_as_they_were(tmp_path: Path) -> None:
    variant = Variant(channels_last=frozenset({"vae"}), tile=512, settings=(Setting("micro_batch", 2, "denoiser"),))
    plain = programs.program(programs.unet(rows=2), programs.vae(), unet=(programs.attention(),))
    unet, vae = plain.components
    lasting = replace(unet, tables=(Unit(("embed",), (0,)),), lasting=("embed",))
    plain = replace(plain, components=(lasting, vae)).with_course((Gone(0), *plain.events))
    several = (plain, replace(plain, variant=variant))
    store.save(tmp_path, "key", several)
    again = store.load(tmp_path, "key")
    made = [again.program(variant) for variant in again.variants]
    assert [program and replace(program, family="") for program in made] == list(several)
    assert again.program(Variant(tile=1024)) is None
    assert store.load(tmp_path, "another").variants == ()


def test_bodies_are_made_for_the_programs_that_call_them(tmp_path: Path) -> None:
    plain = programs.program(programs.unet(rows=2), programs.vae(), unet=(programs.attention(),))
    lone = Recording(name="Lone", own=(), events=(Gone(0),))
    beside = replace(plain, variant=Variant(tile=512), recordings=(*plain.recordings, lone), course=plain.course + 1)
    store.save(tmp_path, "key", (plain, beside))
    for _ in range(2):  # what was made of a table in part is stored whole
        again = store.load(tmp_path, "key")
        few, whole = again.program(Variant(tile=512)), again.program(Variant())
        assert few
        assert whole
        assert few.recordings[-1] == lone
        assert not any(body.events for body in few.recordings[:-1])
        assert whole.events == plain.events
        assert not whole.recordings[-1].events
        store.save(tmp_path, "key", (whole, few))


def test_a_key_says_what_was_recorded() -> None:
    assert store.key_of("sdxl", {"height": 512}) == store.key_of("sdxl", {"height": 512})
    assert store.key_of("sdxl", {"height": 512}) != store.key_of("sdxl", {"height": 1024})


def test_a_file_that_cannot_be_read_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "key.json").write_text("[{")
    assert store.load(tmp_path, "key").variants == ()


def test_a_program_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    plain = programs.program(programs.unet(rows=2), programs.vae(), unet=(programs.attention(),))
    store.save(tmp_path, "key", (plain,))
    file = tmp_path / "key.json"
    file.write_text(file.read_text().replace('"course":', '"curse":'))
    assert store.load(tmp_path, "key").program(Variant()) is None


def test_like_courses_and_components_stand_once(tmp_path: Path) -> None:
    plain = programs.program(programs.unet(rows=2), programs.vae(), unet=(programs.attention(),), vae=())
    course = plain.recordings[plain.course]
    tiled = replace(course, events=(*course.events[:-1], Gone(0)))
    freed = replace(course, events=(*course.events[:-1], Free(0)))  # as plain tuples these are equal
    table = (*plain.recordings, tiled, freed)
    several = tuple(
        replace(plain, variant=Variant(tile=n), recordings=table, course=len(plain.recordings) - 1 + n)
        for n in range(3)
    )
    store.save(tmp_path, "key", several)
    again = store.load(tmp_path, "key")
    made = [program for variant in again.variants if (program := again.program(variant))]
    assert [program.events for program in made] == [program.events for program in several]
    assert [type(program.events[-1]) for program in made] == [Call, Gone, Free]
    assert made[0].components == plain.components
    assert all(one is other for one, other in zip(made[0].components, made[1].components, strict=True))
