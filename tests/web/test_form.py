"""The form: as a request, as a link, and back."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner import profiles
from planner.cards import catalogue
from planner.errors import BadBudget, BadRequest, UnknownModel
from planner.request import Fidelity
from planner.web import form as forms
from planner.web.form import OTHER, Form

COUNT = st.none() | st.integers(1, 10_000)
FORMS = st.builds(
    Form,
    model=st.sampled_from(["sd15", "flux1-dev", "ltx-video-0.9.5", "stable-audio"]),
    card=st.sampled_from([OTHER, "rtx-3070", "t4"]),
    vram=st.sampled_from(["8GB", "23.5GiB", "a lot & more"]),
    width=COUNT, height=COUNT, frames=COUNT, batch=st.integers(1, 99), steps=COUNT,
    budget=st.sampled_from(["auto", "80%", "auto-1GB", "7 GB"]),
    fidelity=st.sampled_from(["exact", "faithful", "lossy"]), plain=st.booleans(),
)  # fmt: skip


@given(FORMS)
def test_a_link_opens_the_form_it_was_made_from(form: Form) -> None:
    form = forms.completed(form)
    if form.card != OTHER:
        form = replace(form, vram=Form().vram)  # of a known card it says nothing
    assert forms.read(dict(parse_qsl(forms.query(form))), Form()) == form


def test_a_link_says_only_what_is_not_usual() -> None:
    assert forms.query(forms.completed(Form(model="sd15", card="t4"))) == "model=sd15&card=t4"
    large = forms.completed(Form(model="sd15", card="rtx-3070", width=3840, height=2224, budget="80%"))
    assert forms.query(large) == "model=sd15&card=rtx-3070&width=3840&height=2224&budget=80%25"


def test_a_link_may_say_more_than_we_know() -> None:
    assert forms.read({"__theme": "dark", "model": "sd15"}, Form()).model == "sd15"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"width": "wide"}, "'wide'"),
        ({"batch": "-1"}, "'-1'"),
        ({"model": "sd99"}, "sd99"),
        ({"fidelity": "x"}, "'x'"),
        ({"plain": "x"}, "'x'"),
    ],
)
def test_a_broken_link_is_refused_in_a_sentence(parameters: dict[str, str], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        forms.read(parameters, Form())


def test_a_form_is_a_request_and_a_card() -> None:
    form = Form(model="SDXL", card="rtx-3070", width=768, batch=3, steps=7, budget="6GB", fidelity="exact")
    asked = form.request
    assert (asked.width, asked.height, asked.images, asked.steps) == (768, None, 3, 7)
    assert (str(asked.budget), asked.fidelity) == ("6GB", Fidelity.EXACT)
    assert form.profile.name == "sdxl"
    assert form.device.name == "NVIDIA GeForce RTX 3070"
    assert replace(form, card=OTHER, vram="12GB").device.total == 12 * 10**9


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(BadBudget, match="'much'"):
        _ = Form(budget="much").request
    with pytest.raises(BadRequest, match="'some'"):
        _ = Form(card=OTHER, vram="some").device
    with pytest.raises(BadRequest, match="images is 0"):
        _ = Form(batch=0).request


def test_folders_of_the_server_are_not_read(tmp_path: object) -> None:
    with pytest.raises(UnknownModel):
        _ = Form(model=str(tmp_path)).profile


def test_all_that_is_shipped_can_be_chosen() -> None:
    assert [name for _, name in forms.models()] == list(profiles.names())
    assert [name for _, name in forms.cards()] == [*(known.slug for known in catalogue()), OTHER]
