"""What a model sees before the first token: the prompt in its frame, even if cut, with nothing after it, every day."""

import resource
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from tokenizers import processors

import tiny
from messages import assert_one_line
from nucleoscope.measure import encoding, generation, scoring, streaming
from nucleoscope.settings import Settings

LONG = " ".join(["the cat and the hat"] * 20)
DATED = "{{ bos_token }}Today: {{ strftime_now('%d %b %Y') }}\n{% for m in messages %}{{ m.content }}{% endfor %}"


def create_appending_tokenizer():
    """A tokenizer that puts a token on both sides of a text."""
    tokenizer = tiny.create_tokenizer()
    special = [("<bos>", tiny.BOS), ("<eos>", tiny.EOS)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<bos> $A <eos>", special_tokens=special)
    assert tokenizer("the cat")["input_ids"][-1] == tiny.EOS
    return tokenizer


def test_a_model_continues_from_the_prompt_and_not_from_an_end_of_text_token():
    plain, appending = tiny.create_tokenizer(), create_appending_tokenizer()
    prompts, texts = ["the cat", "in", ""], [" sat", " the hat", "the cat"]
    assert encoding.encode(appending, prompts).ids == encoding.encode(plain, prompts).ids
    found, expected = (scoring.encode(each, prompts, texts) for each in (appending, plain))
    assert (found.ids, found.starts) == (expected.ids, expected.starts)


def test_an_end_of_text_token_that_the_prompt_itself_has_stays():
    assert encoding.encode(create_appending_tokenizer(), ["the<eos>"]).ids[0][-1] == tiny.EOS


@pytest.mark.parametrize("create", [tiny.create_tokenizer, create_appending_tokenizer])
def test_a_prompt_that_is_cut_keeps_its_beginning_of_text_token(create):
    inputs = encoding.encode(create(), [LONG], context=20, max_tokens=8)
    content = tiny.create_tokenizer(bos=False)(LONG)["input_ids"]
    assert inputs.ids == [[tiny.BOS, *content[-12:]]]
    assert inputs.truncated == [0]


def test_a_prompt_that_is_cut_keeps_its_chat_template():
    tokenizer = tiny.create_tokenizer(chat=True)
    inputs = encoding.encode(tokenizer, [LONG], "chat", context=60, max_tokens=8)
    assert len(inputs.ids[0]) == 53
    shown = tokenizer.decode(inputs.ids[0])
    assert shown.startswith(
        "<bos>[user]"
    )  # the space after it belongs to the token of the first word, which is cut off
    assert shown.endswith(" the hat<eos>[assistant] ")
    whole = encoding.encode(tokenizer, [LONG], "chat").ids[0]
    kept = shown.removeprefix("<bos>[user]").removesuffix("<eos>[assistant] ")
    assert LONG.endswith(kept)
    assert len(whole) > 60


def test_a_context_without_room_for_the_frame_of_a_prompt_is_refused():
    with pytest.raises(ValueError, match="reduce max_tokens") as caught:
        encoding.encode(tiny.create_tokenizer(chat=True), [LONG], "chat", context=20, max_tokens=12)
    assert_one_line(str(caught.value))


def test_a_template_takes_the_day_of_the_settings_for_today():
    tokenizer = tiny.create_tokenizer()
    tokenizer.chat_template = DATED
    shown = [
        tokenizer.decode(encoding.encode(tokenizer, ["the cat"], "chat", template_date=day).ids[0])
        for day in (Settings.template_date, "2031-01-02", Settings.template_date)
    ]
    assert shown == [f"<bos>Today: {day}\nthe cat" for day in ("26 Jul 2024", "02 Jan 2031", "26 Jul 2024")]


def test_the_day_is_a_setting_that_decides_which_tokens_are_measured():
    assert Settings(template_date="2031-01-02").check().describe_measurement()["template_date"] == "2031-01-02"
    for wrong in ("today", "2024-7-26", "20240726", "2024-02-30"):
        with pytest.raises(
            ValueError,
            match=f"template_date is '{wrong}': it must be a date in the form YYYY-MM-DD, such as 2024-07-26",
        ):
            Settings(template_date=wrong).check()


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no system\nrole') }}", "no system role"),
        ("{% for %}", "Expected"),
        ("{{ 1 / 0 }}", "zero"),
    ],
)
def test_a_template_that_fails_is_one_line(template, reason):
    tokenizer = tiny.create_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(
        ValueError, match=f"chat template cannot be applied .*{reason}.*: use prompt_format=raw"
    ) as caught:
        encoding.encode(tokenizer, ["the cat"], "chat")
    assert_one_line(str(caught.value))


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}BODY{% endfor %}{% endfor %}"
DOUBLED = "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"
IN_C = "{{ 9 ** (9 ** 9) }}"  # one operation, which only a signal interrupts, and only in the main thread
ENDLESS = {  # a template -> what is said of it
    LOOP.replace("BODY", ""): "it did not end within 0.5 s",
    LOOP.replace("BODY", "x"): "it did not end within 0.5 s",
    IN_C: "it did not end within 0.5 s",
    "{{ 'x' * 10 ** 11 }}": "it needs more than 1 GB of memory",
    "{{ [0] * 10 ** 11 }}": "it needs more than 1 GB of memory",
    DOUBLED: "it needs more than 268 MB of memory",
    "{{ 'x' * 10 ** 7 }}": "it turns a prompt of 7 characters into 10,000,000",
    "{{ messages[0].content * 10 ** 6 }}": "it turns a prompt of 7 characters into 7,000,000",
    "{{ range(10 ** 12) | list }}": "Range too big",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion",
    "{% include 'x' %}": "no loader",
    "{{ x.y.z }}": "undefined",
}


def encode_in_thread(*arguments) -> encoding.Inputs:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(encoding.encode, *arguments).result()


THREADS = [(encode, *case) for encode in (encoding.encode, encode_in_thread) for case in ENDLESS.items()]


@pytest.mark.parametrize(
    ("encode", "template", "reason"), [case for case in THREADS if case[:2] != (encode_in_thread, IN_C)]
)
def test_a_template_that_does_not_end_or_takes_all_memory_is_one_line(monkeypatch, encode, template, reason):
    if reason.endswith(" 0.5 s"):
        monkeypatch.setattr(encoding, "TEMPLATE_SECONDS", 0.5)
    if template == DOUBLED:  # it takes what it is given, unlike the two that ask for 100 GB at once
        monkeypatch.setattr(encoding, "TEMPLATE_MEMORY", 2**28)
    tokenizer = tiny.create_tokenizer()
    tokenizer.chat_template, tokenizer.name_or_path = template, "me/endless"
    before = signal.getsignal(signal.SIGALRM), resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(ValueError, match="the chat template of 'me/endless' cannot be applied") as caught:
        encode(tokenizer, ["the cat"], "chat")
    assert reason in assert_one_line(str(caught.value))
    assert before == (signal.getsignal(signal.SIGALRM), resource.getrlimit(resource.RLIMIT_AS))
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_template_gives_the_same_in_every_thread():
    tokenizer = tiny.create_tokenizer(chat=True)
    expected = encoding.encode(tokenizer, ["the cat", LONG], "chat")
    assert encode_in_thread(tokenizer, ["the cat", LONG], "chat") == expected
    assert len(expected.ids[0]) > 2


def test_a_long_prompt_is_no_fault_of_its_template():
    tokenizer = tiny.create_tokenizer(chat=True)
    prompt = "the cat " * 150_000
    assert encoding.encode(tokenizer, [prompt], "chat").ids[0][0] == tiny.BOS


@pytest.mark.parametrize("mode", ["generate", "score", "stream"])
def test_a_token_that_the_model_does_not_know_is_refused(mode):
    tokenizer, model = tiny.create_tokenizer(), tiny.create_model()
    tokenizer.add_tokens(["<image>"])
    measured = {
        "generate": lambda: generation.measure(model, tokenizer, ["the", "a <image>"], progress=False),
        "score": lambda: scoring.measure(model, tokenizer, ["the", "a"], [" cat", " <image>"], progress=False),
        "stream": lambda: streaming.stream(model, tokenizer, "a <image>"),
    }[mode]()
    said = f"has the token {tiny.VOCAB}, but the model's embedding has only {tiny.VOCAB} rows"
    with pytest.raises(ValueError, match=said):
        list(measured)
