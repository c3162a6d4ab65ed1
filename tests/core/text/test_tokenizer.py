"""The tokenizer answers as transformers does, from any thread, and refuses what it cannot encode by name."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

import tiny_tokenizers
from loramux.errors import ConfigInvalid, ContextLengthExceeded, RequestInvalid
from loramux.text.tokenizer import Tokenizer

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|turn|>{{ message.role }}: {{ message.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant:{% endif %}"
)
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
def chat_tokenizer() -> Tokenizer:
    backend = tokenizers.Tokenizer.from_str(tiny_tokenizers.byte_level().backend.to_str())
    tokenizer = tiny_tokenizers.wrap(backend)
    tokenizer.hf.chat_template = TEMPLATE
    return tokenizer


@pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)
@pytest.mark.parametrize("add_special_tokens", [True, False])
@pytest.mark.parametrize("text", [*tiny_tokenizers.CORPUS, "", "a<|turn|>b</s>"])
def test_it_encodes_and_decodes_as_transformers_does(kind: str, add_special_tokens: bool, text: str) -> None:
    tokenizer = tiny_tokenizers.KINDS[kind]()
    token_ids = tokenizer.encode(text, add_special_tokens)
    assert token_ids == tokenizer.hf(text, add_special_tokens=add_special_tokens)["input_ids"]
    for skip in (True, False):
        expected = tokenizer.hf.decode(token_ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert tokenizer.decode(token_ids, skip_special_tokens=skip) == expected


def test_it_knows_its_end_and_its_size() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    assert tokenizer.eos_token_ids == (tokenizer.hf.eos_token_id,)
    assert tokenizer.vocab_size == len(tokenizer.hf)
    assert Tokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend)).eos_token_ids == ()


def test_a_saved_one_comes_back_without_its_truncation(tmp_path: Path) -> None:
    saved = tiny_tokenizers.byte_level()
    backend = tokenizers.Tokenizer.from_str(saved.backend.to_str())
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(tmp_path)
    text = tiny_tokenizers.CORPUS[0]
    assert Tokenizer.load(tmp_path).encode(text) == saved.encode(text)
    assert Tokenizer.load(tmp_path).eos_token_ids == saved.eos_token_ids


def test_a_gguf_file_brings_its_own(tmp_path: Path) -> None:
    original = tiny_tokenizers.byte_level()
    model = json.loads(original.backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(16)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in tiny_tokenizers.SPECIAL else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(original.eos_token_ids[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    loaded = Tokenizer.load(tmp_path, gguf_file="model.gguf")
    assert loaded.eos_token_ids == original.eos_token_ids
    assert [loaded.encode(text) for text in tiny_tokenizers.CORPUS[:4]] == [
        original.encode(text) for text in tiny_tokenizers.CORPUS[:4]
    ]


def test_a_folder_without_a_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=f"tokenizer '{tmp_path}' could not be loaded"):
        Tokenizer.load(tmp_path)


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(RequestInvalid, match="lone surrogate at character 2") as refused:
        tiny_tokenizers.byte_level().encode("ab\ud800c")
    assert refused.value.param == "prompt"


def test_ids_that_no_vocabulary_has_give_no_text_and_impossible_ones_are_refused() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    assert tokenizer.decode([99_999]) == ""
    for impossible in (-1, 2**32):
        with pytest.raises(RequestInvalid, match="token ids must be from 0"):
            tokenizer.decode([impossible])


def test_many_threads_get_the_answers_of_one() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    texts = [text * repeats for repeats in range(1, 21) for text in tiny_tokenizers.CORPUS]
    expected = [tokenizer.encode(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tokenizer.encode, texts)) == expected
        assert list(pool.map(tokenizer.decode, expected)) == texts


def test_messages_become_the_text_of_the_template(chat_tokenizer: Tokenizer) -> None:
    assert chat_tokenizer.render_chat(MESSAGES) == "<|turn|>user: hello\n<|turn|>assistant:"
    assert chat_tokenizer.render_chat(MESSAGES, add_generation_prompt=False) == "<|turn|>user: hello\n"
    assert chat_tokenizer.apply_chat_template(MESSAGES) == chat_tokenizer.hf.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_dict=False
    )


def test_an_unfinished_last_message_is_continued(chat_tokenizer: Tokenizer) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "The cap"}]
    text = chat_tokenizer.render_chat(messages, continue_final_message=True)
    assert text.endswith("<|turn|>assistant: The cap")


@pytest.mark.parametrize(
    ("messages", "reason"), [([{"role": "tool", "content": "x"}], "no tools here"), ([{"role": "user"}], "content")]
)
def test_messages_that_the_template_does_not_take_are_refused(
    chat_tokenizer: Tokenizer, messages: list[dict[str, str]], reason: str
) -> None:
    with pytest.raises(RequestInvalid, match=f"do not fit the model's chat template: .*{reason}") as refused:
        chat_tokenizer.render_chat(messages)
    assert refused.value.param == "messages"


def test_a_model_without_a_template_says_so_and_takes_one_from_the_request() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    with pytest.raises(RequestInvalid, match="no chat template") as refused:
        tokenizer.apply_chat_template(MESSAGES)
    assert refused.value.param == "messages"
    assert tokenizer.render_chat(MESSAGES, chat_template="{{ messages[0].content }}") == "hello"


@pytest.mark.parametrize("name", ["tokenize", "return_tensors", "tokenizer_kwargs"])
def test_arguments_that_are_not_the_templates_are_refused(chat_tokenizer: Tokenizer, name: str) -> None:
    with pytest.raises(RequestInvalid, match=f"'{name}' is no argument of a chat template"):
        chat_tokenizer.render_chat(MESSAGES, **{name: True})


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "unigram", "word_level"])
def test_token_texts_keep_the_space_that_the_token_brings(kind: str) -> None:
    tokenizer = tiny_tokenizers.KINDS[kind]()
    token_ids = tokenizer.encode("of France", add_special_tokens=False)
    joined = "".join(tokenizer.token_text(token_id) for token_id in token_ids)
    assert joined.strip() == "of France"
    assert tokenizer.token_text(tokenizer.eos_token_ids[0]).strip() == "</s>"


def test_text_that_can_never_fit_is_refused_before_it_is_encoded() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    longest = max(len(token.encode()) for token in tokenizer.backend.get_vocab())

    with pytest.raises(ContextLengthExceeded, match="maximum context length is 10 tokens") as refused:
        tokenizer.encode("x" * (10 * longest + 1), context=10)

    assert refused.value.code == "context_length_exceeded"
    assert len(tokenizer.encode("x" * 10 * longest, context=10)) > 10, "only what is certain is refused here"


@pytest.mark.parametrize("kind", ["unigram", "word_level"])
def test_text_is_not_called_too_long_where_one_token_may_stand_for_any_amount_of_it(kind: str) -> None:
    tokenizer = tiny_tokenizers.KINDS[kind]()

    assert tokenizer.encode("x" * 10_000, context=1)


def test_encoding_a_long_text_lets_other_threads_run() -> None:
    tokenizer = tiny_tokenizers.byte_level()
    others = 0
    done = threading.Event()

    def encode() -> None:
        tokenizer.encode("some words " * 50_000)
        done.set()

    thread = threading.Thread(target=encode)
    thread.start()
    while not done.is_set():
        others += 1
    thread.join()

    assert others > 1000


def test_content_that_is_no_text_is_refused_by_name(chat_tokenizer: Tokenizer) -> None:
    image = {"type": "image_url", "image_url": {"url": "x"}}

    with pytest.raises(RequestInvalid, match="a content part must be of type 'text', got 'image_url'"):
        chat_tokenizer.render_chat([{"role": "user", "content": [image]}])
    with pytest.raises(RequestInvalid, match="a message must be an object with 'role' and 'content', got str"):
        chat_tokenizer.render_chat(["hi"])  # type: ignore[list-item]


def test_content_that_is_null_is_empty_text(chat_tokenizer: Tokenizer) -> None:
    assert chat_tokenizer.render_chat([{"role": "user", "content": None}]).startswith("<|turn|>user: \n")
