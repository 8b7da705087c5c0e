"""Prompts in tokens: what is cut, what never is, special tokens, and the border between prompt and option."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.decoders import Metaspace
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from abmll.common.config import PromptConfig
from abmll.common.errors import ConfigError, DataError
from abmll.language.encoding import MAX_TEXTS, Encoded, Encoder
from abmll.tasks import Example, render

SHORT = PromptConfig(instruction=False, list_options=False, answer="text")
LISTED = PromptConfig(instruction=True, list_options=True, answer="text")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
EXAMPLE = Example("7", "is it raining?", ("yes", "no, not at all"), 1)


@pytest.fixture
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    """One token a byte; adds no special tokens."""
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture
def with_bos(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Puts a BOS in front of a text and an EOS behind it."""
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


SCHEMES = ["first", "always", "normalizer"]


def metaspace(scheme: str) -> PreTrainedTokenizerBase:
    """Like sentencepiece: a word carries the space before it, and a text's first word gets one of its own.

    Newer conversions do so in the pre-tokenizer (``first``, ``always``), older ones in the normalizer.
    """
    text = ["is it raining? yes no, not at all\nAnswer: t: maybe so yes yes no no raining raining Answer: all"] * 3
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    in_words = "first" if scheme == "normalizer" else scheme
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=in_words)
    tokenizer.decoder = Metaspace(prepend_scheme=in_words)
    alphabet = [chr(code) for code in range(32, 127)] + ["\n"]
    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text, trainer)
    if scheme == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = None  # pyright: ignore[reportAttributeAccessIssue] (removes it)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def texts(tokenizer: PreTrainedTokenizerBase, encoded: Encoded) -> tuple[str, list[str]]:
    """Prompt and options as text again."""

    def text(tokens: tuple[int, ...]) -> str:
        decoded = tokenizer.decode(list(tokens))
        assert isinstance(decoded, str)
        return decoded

    return text(encoded.prompt), [text(option) for option in encoded.options]


def test_an_option_s_last_token_is_not_read() -> None:
    example = Encoded((5, 6, 7), ((8, 9), (10,), (11, 12, 13)), 2, 4)
    assert len(example) == 3 + 1 + 0 + 2
    assert {example: 1}[Encoded((5, 6, 7), ((8, 9), (10,), (11, 12, 13)), 2, 4)] == 1


def test_prompt_and_options_are_the_rendered_text(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = Encoder(tokenizer, SHORT, 2048).encode(EXAMPLE, "weather")
    assert texts(tokenizer, encoded) == ("weather: is it raining?\nAnswer:", [" yes", " no, not at all"])
    assert (encoded.answer, encoded.truncated) == (1, 0)
    assert len(encoded) == len("weather: is it raining?\nAnswer:") + len(" ye") + len(" no, not at al")


def test_the_middle_of_a_long_input_is_cut_and_counted_and_nothing_else(tokenizer: PreTrainedTokenizerBase) -> None:
    long = Example("1", "START" + "0123456789" * 30 + "END", ("yes", "no, not at all"), 0)
    whole = Encoder(tokenizer, LISTED, 2048).encode(long, "weather")
    assert whole.truncated == 0
    limit = 250
    cut = Encoder(tokenizer, LISTED, limit).encode(long, "weather")
    assert len(cut) == limit  # one token a byte: it can be met exactly
    prompt, options = texts(tokenizer, cut)
    full, _ = texts(tokenizer, whole)
    head, tail = prompt.split(" ... ")
    assert options == [" yes", " no, not at all"]
    assert full.startswith(head)
    assert full.endswith(tail)
    assert head.startswith("Return only the text of the correct answer for the question below.\n\nweather: START0123")
    assert tail.endswith("789END\nChoices:\nA) yes\nB) no, not at all\nAnswer:")
    kept_head = len(head) - head.index("START")
    kept_tail = tail.index("\nChoices:")
    assert kept_head - kept_tail in (0, 1)  # the middle, and not one of its sides
    assert cut.truncated == len(long.input) - kept_head - kept_tail
    assert cut.truncated > 0


def test_cutting_survives_characters_of_several_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    for limit in range(60, 90):
        encoded = Encoder(tokenizer, SHORT, limit).encode(Example("1", "ü€🙂" * 40, ("yes", "no"), 0), "t")
        assert len(encoded) <= limit
        assert encoded.truncated > 0
        prompt, options = texts(tokenizer, encoded)
        assert prompt.startswith("t: ü")
        assert prompt.endswith("\nAnswer:")
        assert options == [" yes", " no"]


def test_max_length_is_a_limit_of_its_own(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = PromptConfig(instruction=False, list_options=False, max_length=60)
    assert len(Encoder(tokenizer, prompt, 2048).encode(Example("1", "x" * 500, ("yes", "no"), 0), "t")) == 60
    with pytest.raises(ConfigError, match=r"^max_length: 60 is not within the model's context of 59 tokens$"):
        Encoder(tokenizer, prompt, 59)


@pytest.mark.parametrize("room", [0, 3, 5])
def test_options_that_leave_no_room_for_the_input_are_refused(room: int, tokenizer: PreTrainedTokenizerBase) -> None:
    options = ("a" * 100, "b" * 100)
    frame = len("t: \nAnswer:") + 100 + 100
    # " ... " and one token of the input need 6.
    with pytest.raises(DataError) as caught:
        Encoder(tokenizer, SHORT, frame + room).encode(Example("9", "x" * 50, options, 0), "t")
    assert str(caught.value) == (
        f"task 't', example '9': options and prompt frame leave no room for the input within {frame + room} tokens; "
        "shorten the options or raise max_length"
    )
    fits = Encoder(tokenizer, SHORT, frame + 6).encode(Example("9", "x" * 50, options, 0), "t")
    assert (len(fits), fits.truncated) == (frame + 6, 49)


def test_a_short_input_is_never_touched_by_a_limit_it_meets(tokenizer: PreTrainedTokenizerBase) -> None:
    whole = Encoder(tokenizer, SHORT, 2048).encode(EXAMPLE, "t")
    assert Encoder(tokenizer, SHORT, len(whole)).encode(EXAMPLE, "t") == whole
    assert Encoder(tokenizer, SHORT, len(whole) - 1).encode(EXAMPLE, "t").truncated > 0


def test_an_option_without_tokens_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" \u200b", "")
    with pytest.raises(DataError, match=r"^task 't', example '1': the model's tokenizer makes nothing of option "):
        Encoder(tokenizer, SHORT, 2048).encode(Example("1", "x", ("yes", "\u200b"), 0), "t")


def test_the_special_tokens_before_a_text_are_kept_and_those_behind_it_dropped(
    with_bos: PreTrainedTokenizerBase,
) -> None:
    encoded = Encoder(with_bos, SHORT, 2048).encode(EXAMPLE, "weather")
    assert with_bos("x")["input_ids"] == [1, *with_bos("x", add_special_tokens=False)["input_ids"], 2]  # pyright: ignore
    text = "weather: is it raining?\nAnswer:"
    assert encoded.prompt == (1, *with_bos(text, add_special_tokens=False)["input_ids"])  # pyright: ignore
    assert not any(token in (1, 2) for option in encoded.options for token in option)
    assert 1 not in encoded.prompt[1:]


def test_a_bos_counts_towards_the_limit(with_bos: PreTrainedTokenizerBase) -> None:
    encoded = Encoder(with_bos, SHORT, 60).encode(Example("1", "x" * 500, ("yes", "no"), 0), "t")
    assert len(encoded) == 60
    assert encoded.prompt[0] == 1


def test_the_chat_template_wraps_the_prompt_and_options_follow_it_at_once(with_bos: PreTrainedTokenizerBase) -> None:
    with_bos.chat_template = TEMPLATE
    prompt = PromptConfig(instruction=False, list_options=True, chat_template=True)
    encoded = Encoder(with_bos, prompt, 2048).encode(EXAMPLE, "weather")
    assert texts(with_bos, encoded) == (
        "<s><|user|>\nweather: is it raining?\nChoices:\nA) yes\nB) no, not at all\nAnswer:</s>\n<|assistant|>\n",
        ["yes", "no, not at all"],
    )
    # The template writes BOS and EOS itself: as single tokens, and not a second time.
    assert [token for token in encoded.prompt if token < 3] == [1, 2]


def test_inside_a_chat_template_too_only_the_input_is_cut(with_bos: PreTrainedTokenizerBase) -> None:
    with_bos.chat_template = TEMPLATE
    prompt = PromptConfig(instruction=False, list_options=False, chat_template=True)
    encoded = Encoder(with_bos, prompt, 80).encode(Example("1", "x" * 500, ("yes", "no"), 0), "t")
    text, options = texts(with_bos, encoded)
    assert len(encoded) == 80
    assert text.startswith("<s><|user|>\nt: xxx")
    assert text.endswith("xxx\nAnswer:</s>\n<|assistant|>\n")
    assert options == ["yes", "no"]


def test_a_chat_template_that_is_not_there_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match=r"^chat_template: this model's tokenizer has none; set it to false$"):
        Encoder(tokenizer, PromptConfig(chat_template=True), 2048)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("prompt", [SHORT, LISTED], ids=["short", "listed"])
def test_prompt_and_option_are_the_tokens_of_the_whole_text(scheme: str, prompt: PromptConfig) -> None:
    tokenizer = metaspace(scheme)
    encoded = Encoder(tokenizer, prompt, 2048).encode(EXAMPLE, "t")
    text, options = texts(tokenizer, encoded)
    assert text.startswith("<s>")
    for option, tokens in zip(EXAMPLE.options, encoded.options, strict=True):
        whole = text.removeprefix("<s>").lstrip() + " " + option
        assert [*encoded.prompt, *tokens] == tokenizer(whole)["input_ids"]
    assert len(encoded.options[0]) == 1  # " yes" is a token of its own: no space was lost or doubled
    assert [option.strip() for option in options] == list(EXAMPLE.options)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_behind_a_chat_template_no_space_is_invented(scheme: str) -> None:
    tokenizer = metaspace(scheme)
    tokenizer.chat_template = TEMPLATE
    prompt = PromptConfig(instruction=False, list_options=False, chat_template=True)
    encoded = Encoder(tokenizer, prompt, 2048).encode(EXAMPLE, "t")
    space = tokenizer.convert_tokens_to_ids("▁yes")
    bare = tokenizer.convert_ids_to_tokens(list(encoded.options[0]))
    assert "".join(bare) == "yes"
    assert tokenizer("yes", add_special_tokens=False)["input_ids"] == [space]  # what encoding it alone would give


def test_an_option_that_would_melt_into_the_prompt_s_last_character_keeps_its_own_tokens() -> None:
    vocabulary = {letter: index for index, letter in enumerate([*sorted(set("<|assistant|>user=t: 0x\nAnswer")), ">="])}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, [(">", "=")])))
    tokenizer.chat_template = "<|user|>{{ messages[0].content }}<|assistant|>"
    assert tokenizer(">=")["input_ids"] == [vocabulary[">="]]
    prompt = PromptConfig(instruction=False, list_options=False, chat_template=True)
    encoded = Encoder(tokenizer, prompt, 2048).encode(Example("1", "x", ("=0", "0"), 0), "t")
    assert encoded.options == ((vocabulary["="], vocabulary["0"]), (vocabulary["0"],))
    assert encoded.prompt[-1] == vocabulary[">"]


ROWS = [
    Example("1", "is it raining?", ("yes", "no, not at all"), 1),
    Example("2", "", ("=", ">="), 0),
    Example("3", "raining " * 60, ("yes", "maybe so"), None),
    Example("4", "ü€🙂\n\tno\u2028 " * 9, ("ü", "🙂", "yes"), 2),
    Example("5", " all ", ("no", "yes", "Answer:", ":"), 0),
    Example("6", "0123456789" * 30, (" yes ", "no"), 1),
]
MANY = [replace(row, id=f"{row.id}/{copy}", input=f"{row.input}{copy}") for copy in range(45) for row in ROWS]


def one_by_one(encoder: Encoder, example: Example, task_name: str) -> Encoded:
    """An encoder without batches: a tokenizer call for every text."""

    def plain(text: str) -> list[int]:
        return encoder.tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore

    def prompt(shown: str) -> str:
        text = parts.prefix + shown + parts.suffix
        if encoder.settings.chat_template:
            turns = [{"role": "user", "content": text}]
            text = encoder.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert isinstance(text, str)
        return text

    def opened(text: str) -> tuple[int, ...]:
        special = [] if encoder.settings.chat_template else encoder.tokenizer("x")["input_ids"]
        return (*special[: special.index(plain("x")[0]) if special else 0], *plain(text))  # pyright: ignore

    parts = render(example, task_name, encoder.settings)
    text, bare = prompt(parts.input), opened(prompt(""))
    tokens, before = opened(text), opened(text.partition(parts.prefix)[0] + parts.prefix)
    start = next(place for place in range(len(tokens)) if tokens[: place + 1] != before[: place + 1])
    options = []
    for option in parts.continuations:
        joint, alone = plain(text[-1] + option), plain(text[-1])
        options.append(joint[len(alone) :] if joint[: len(alone)] == alone else plain(option))
    answers = tuple(map(tuple, options))
    words, gap = plain(parts.input), plain(" ... ")
    scored = sum(len(option) - 1 for option in options)
    keep = len(words) - len(gap) - (len(tokens) + scored - encoder.limit)
    if len(tokens) + scored <= encoder.limit:
        return Encoded(tokens, answers, example.answer, 0, start, bare)
    while True:
        head, tail = words[: keep - keep // 2], words[len(words) - keep // 2 :]
        tokens = opened(prompt(f"{encoder.tokenizer.decode(head)} ... {encoder.tokenizer.decode(tail)}"))
        if len(tokens) + scored <= encoder.limit:
            return Encoded(tokens, answers, example.answer, len(words) - keep, start, bare)
        keep -= len(tokens) + scored - encoder.limit


@pytest.mark.parametrize("limit", [2048, 230])
@pytest.mark.parametrize("prompt", ["text", "letter", "chat"])
@pytest.mark.parametrize("scheme", ["bytes", "bos", *SCHEMES])
def test_many_at_once_are_what_they_are_one_by_one(
    scheme: str, prompt: str, limit: int, request: pytest.FixtureRequest
) -> None:
    made = {"bytes": "tokenizer", "bos": "with_bos"}
    tokenizer = request.getfixturevalue(made[scheme]) if scheme in made else metaspace(scheme)
    tokenizer.chat_template = TEMPLATE
    settings = {
        "text": SHORT,
        "letter": PromptConfig(instruction=False, answer="letter"),
        "chat": replace(SHORT, chat_template=True),
    }[prompt]
    encoder = Encoder(tokenizer, settings, limit)
    batched = list(encoder.encode_all(iter(MANY), "t"))
    assert len(batched) == len(MANY) > MAX_TEXTS
    for example, encoded in list(zip(MANY, batched, strict=True))[::7]:
        assert encoded == encoder.encode(example, "t")
        assert encoded == one_by_one(encoder, example, "t")
    assert any(encoded.truncated for encoded in batched) == (limit == 230)


def test_options_that_come_again_are_not_tokenised_again(tokenizer: PreTrainedTokenizerBase) -> None:
    class Counting(Encoder):
        texts = 0

        def _plain(self, texts: Sequence[str]) -> list[list[int]]:
            self.texts += len(texts)
            return super()._plain(texts)

    encoder = Counting(tokenizer, SHORT, 2048)
    examples = [Example(str(n), f"question {n}", ("yes", "no", f"{n % 3}"), 0) for n in range(700)]
    assert len(list(encoder.encode_all(examples, "t"))) == 700
    # Prompts; in each of three portions what stands before the input, the prompt without it, and five options, alone
    # and behind the character before them; "x" for a BOS.
    assert 700 + 10 < encoder.texts <= 700 + 3 * (2 + 2 * 5 + 1) + 1


def test_encoding_is_the_same_every_time(make_scorer: Callable, tokenizer: PreTrainedTokenizerBase) -> None:
    first, second = (Encoder(tokenizer, LISTED, 200).encode(EXAMPLE, "t") for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert make_scorer("llama", prompt=LISTED).encode([EXAMPLE], "t") == [
        Encoder(tokenizer, LISTED, 2048).encode(EXAMPLE, "t")
    ]


STARTED = [SHORT, LISTED, PromptConfig(instruction=True, list_options=True, answer="letter")]


def behind(tokenizer: PreTrainedTokenizerBase, encoded: Encoded) -> str:
    """The text from the input on."""
    text = tokenizer.decode(list(encoded.prompt[encoded.start :]))
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("prompt", STARTED)
@pytest.mark.parametrize("text", ["is it raining?", "ü", ""])
def test_the_input_starts_behind_instruction_and_name(
    with_bos: PreTrainedTokenizerBase, prompt: PromptConfig, text: str
) -> None:
    example = replace(EXAMPLE, input=text)
    encoded = Encoder(with_bos, prompt, 2048).encode(example, "weather")
    rendered = render(example, "weather", prompt)
    assert behind(with_bos, encoded) == rendered.input + rendered.suffix
    assert encoded.start == 1 + len(rendered.prefix)  # a token a byte, and the BOS


def test_the_input_starts_behind_the_chat_template_too(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = TEMPLATE
    encoded = Encoder(tokenizer, replace(SHORT, chat_template=True), 2048).encode(EXAMPLE, "weather")
    assert behind(tokenizer, encoded) == "is it raining?\nAnswer:</s>\n<|assistant|>\n"


def test_what_is_left_of_a_long_input_starts_where_it_did(tokenizer: PreTrainedTokenizerBase) -> None:
    long = replace(EXAMPLE, input="START" + "0123456789" * 30 + "END")
    cut = Encoder(tokenizer, LISTED, 250).encode(long, "weather")
    assert cut.truncated > 0
    assert behind(tokenizer, cut).startswith("START0123")
    assert cut.start == Encoder(tokenizer, LISTED, 2048).encode(EXAMPLE, "weather").start


def test_the_input_starts_behind_demonstrations(tokenizer: PreTrainedTokenizerBase) -> None:
    shown = replace(EXAMPLE, id="8", input="is it dry?")
    [encoded], _ = Encoder(tokenizer, SHORT, 2048).encode_demonstrated([EXAMPLE], "weather", [shown])
    assert behind(tokenizer, encoded) == "is it raining?\nAnswer:"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_word_that_takes_the_space_before_it_belongs_to_the_input(scheme: str) -> None:
    tokenizer = metaspace(scheme)
    encoded = Encoder(tokenizer, SHORT, 2048).encode(replace(EXAMPLE, input="raining yes"), "t")
    assert behind(tokenizer, encoded).strip() == "raining yes\nAnswer:"
