"""Ask a vision-language model: through vLLM, or through transformers with the same answers.

Both engines see the same tokens (the checkpoint's chat template) and the same pixels (of the Qwen-VL family by qwen-vl-utils and the
model's own patch size; others are reduced to the pixels that the config allows, and fitted by the checkpoint's own processor), decode
JSON under the same grammar (xgrammar) and read yes and no, and other given answers, from the same logits.
"""

import difflib
import math
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from darkroom.config import models
from darkroom.errors import DarkroomError
from darkroom.jobs.runtime import keep_freed_memory, say
from darkroom.metrics.base import Answer, Ask
from darkroom.metrics.rubric import Question, Rubric
from darkroom.plan.stages import STAGES

QUESTION_TOKENS = 4096  # room for a question's text: a prompt of some 15 000 characters


MOST_LABELS = 128  # tokens whose probabilities vLLM gives


@dataclass(frozen=True)
class Fitted:
    """A picture as the judge sees it, or why it cannot. name: of its content, the same for no other; None: not known."""

    image: Any
    name: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Prompt:
    """A question as the engines take it: token ids with one mark for each picture, as the chat template has it."""

    ask: Ask
    ids: list[int]
    pictures: list[Fitted]

    @property
    def images(self) -> list[Any]:
        return [picture.image for picture in self.pictures]


class Judge:
    """What both engines share: the processor, the conversation, the label tokens.

    section: `judge` of the config, its model a folder (`darkroom.models.hub.local_section`).
    """

    device: str
    dtype: str

    def __init__(self, section: models.Judge, kind: str, rubric: Rubric):
        from transformers import AutoConfig, AutoProcessor

        self.section, self.images_each = section, 2 if STAGES[kind].reads else 1
        self.path = section.model
        try:
            self.processor = AutoProcessor.from_pretrained(self.path)
            self.config = AutoConfig.from_pretrained(self.path)
        except Exception as error:  # the libraries raise many kinds; all of them mean that this is no usable model
            raise DarkroomError(f"judge.model: cannot load {self.path}: {_first_line(error)}") from error
        image = getattr(self.processor, "image_processor", None)
        self.tokenizer: Any = getattr(self.processor, "tokenizer", None)
        if image is None or self.tokenizer is None:
            raise DarkroomError(f"judge.model: {self.path}: not a model that reads pictures and text")
        self.template = self.processor.chat_template or self.tokenizer.chat_template
        if not isinstance(self.template, str):
            raise DarkroomError(
                f"judge.model: {self.path}: has no chat template; use a model tuned to follow instructions"
            )
        # The Qwen-VL family takes pictures of any size: they are fitted here, so that each is resized once for all its questions.
        self.side = image.patch_size * image.merge_size if type(image).__name__.startswith("Qwen2VL") else None
        least, most = _own_pixels(image) if self.side else (1, 1 << 62)
        # Within the checkpoint's own limits, so that no engine resizes the pictures once more.
        self.min_pixels = min(max(section.min_pixels or least, least), most)
        self.max_pixels = min(max(section.max_pixels or most, self.min_pixels), most)
        self._labels: dict[tuple[tuple[str, tuple[str, ...]], ...], dict[str, list[int]]] = {}
        for question in rubric.questions.get(kind, []):
            self.label_ids(question)
        added = self.tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in added if token.special} | set(self.tokenizer.all_special_tokens)
        self.special = sorted(special, key=len, reverse=True)
        refuse_thinking(self.path, self.text("yes or no?"))
        own = getattr(self.config.get_text_config(), "max_position_embeddings", None) or 1 << 20
        self.max_length = min(own, self.images_each * self._picture_tokens() + QUESTION_TOKENS + section.max_tokens)
        self.max_length = section.engine_args.get("max_model_len", self.max_length)

    def label_ids(self, question: Question) -> dict[str, list[int]]:
        """Given answer of a question -> the ids of the tokens that say it.

        Raises DarkroomError where an answer has none, or shares one with another: then the first token does not tell which was meant.
        """
        labels = tuple(question.labels.items())
        if labels not in self._labels:
            found: dict[str, list[int]] = {}
            owners: dict[int, str] = {}
            where = f"judge.model: {self.path}: question {question.name}: its tokenizer has"
            for answer, spellings in labels:
                encoded = [self.tokenizer.encode(word, add_special_tokens=False) for word in spellings]
                found[answer] = sorted({ids[0] for ids in encoded if len(ids) == 1})
                if not found[answer]:
                    raise DarkroomError(
                        f"{where} no single token for the answer {answer}; ask for another word, such as a letter, or give it other spellings"
                    )
                for token in found[answer]:
                    if owners.setdefault(token, answer) != answer:
                        raise DarkroomError(
                            f"{where} one token for the answers {owners[token]} and {answer}; give them other spellings"
                        )
            if len(owners) > MOST_LABELS:
                raise DarkroomError(
                    f"{where} {len(owners)} tokens for its answers; at most {MOST_LABELS} are compared: give fewer answers or spellings"
                )
            self._labels[labels] = found
        return self._labels[labels]

    def _picture_tokens(self) -> int:
        """Tokens of a picture of the most pixels."""
        if self.side:
            return self.max_pixels // self.side**2 + 2
        from PIL import Image

        side = math.isqrt(min(self.max_pixels, 2048**2))
        # For those that cut pictures into tiles by their form, of the forms the one with the most.
        forms = [(side, side), (2 * side, side // 2), (side // 2, 2 * side)]
        blank = [Image.new("RGB", form) for form in forms]
        text = self.text("", pictures=1)
        return max(self.processor(text=[text], images=[one], return_tensors="pt").input_ids.shape[1] for one in blank)

    def fit(self, image: Any, name: str | None = None) -> Fitted:
        """A picture (PIL, RGB) resized for the judge. Can be called in any thread."""
        try:
            return Fitted(self._resized(image), name)
        except ValueError as error:
            return Fitted(None, name, f"the judge cannot take this image: {_first_line(error)}")

    def _resized(self, image: Any) -> Any:
        if self.side:
            import numpy as np
            from qwen_vl_utils import smart_resize

            height, width = smart_resize(image.height, image.width, self.side, self.min_pixels, self.max_pixels)
            # As an array: the libraries copy a picture of Pillow's several times for each question.
            return np.array(image.resize((width, height)))
        pixels = image.width * image.height
        scale = math.sqrt(min(max(pixels, self.min_pixels), self.max_pixels) / pixels)
        size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
        return image.resize(size) if size != image.size else image

    def text(self, question: str, pictures: int | None = None) -> str:
        """The prompt of a question by the checkpoint's chat template, which is told not to think where it asks."""
        for token in self.special:  # a prompt is data: it must not end its turn, or stand for an image
            question = question.replace(token, f"{token[0]} {token[1:]}")
        content = [{"type": "image"}] * (self.images_each if pictures is None else pictures)
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        thinking = {"enable_thinking": False} if "enable_thinking" in self.template else {}
        return self.processor.apply_chat_template(
            messages, chat_template=self.template, tokenize=False, add_generation_prompt=True, **thinking
        )

    def prompt(self, ask: Ask, pictures: list[Fitted]) -> Prompt | str:
        """A question about fitted pictures, or why it cannot be asked."""
        if error := next((picture.error for picture in pictures if picture.error), None):
            return error
        # What the template wrote has every token that is to be there, also that of the beginning.
        ids = self.tokenizer.encode(self.text(ask.text, len(pictures)), add_special_tokens=False)
        tokens = len(ids)
        if self.side:
            tokens += sum(math.prod(edge // self.side for edge in picture.image.shape[:2]) for picture in pictures)
        return self.too_long(tokens) or Prompt(ask, ids, pictures)

    def too_long(self, tokens: int) -> str | None:
        """Why a question of so many tokens does not fit the judge's context, or None."""
        room = self.max_length - self.section.max_tokens
        return None if tokens <= room else f"the question has {tokens} tokens; the judge takes {room}"

    def ask(self, asks: list[Ask]) -> list[Answer]:
        """One answer per question, in order. Pictures that are not `Fitted` are fitted, each once for all its questions."""
        fitted: dict[int, Fitted] = {}
        for image in (image for ask in asks for image in ask.images if not isinstance(image, Fitted)):
            if id(image) not in fitted:
                fitted[id(image)] = self.fit(image)
        prompts = [self.prompt(ask, [fitted.get(id(image), image) for image in ask.images]) for ask in asks]
        replies = iter(self.reply([prompt for prompt in prompts if isinstance(prompt, Prompt)]))
        return [next(replies) if isinstance(prompt, Prompt) else Answer(error=prompt) for prompt in prompts]

    def reply(self, ready: list[Prompt]) -> list[Answer]:
        raise NotImplementedError


class VllmJudge(Judge):
    """vLLM in this process, or spread over several GPUs by tensor parallelism."""

    def __init__(self, section: models.Judge, kind: str, rubric: Rubric):
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its start prints pages of advice
        super().__init__(section, kind, rubric)
        try:
            from vllm.platforms import current_platform

            cpu = current_platform.is_cpu()
            if cpu or section.gpus == 1:
                os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # starts in seconds, and repeats exactly
            from vllm import LLM, EngineArgs
        except ImportError as error:
            raise DarkroomError(
                f"judge.engine is vllm, but vLLM cannot be imported ({_first_line(error)}); install it, or set"
                " engine: transformers"
            ) from error
        known = [field.name for field in fields(EngineArgs)]
        if wrong := next((name for name in section.engine_args if name not in known), None):
            near = difflib.get_close_matches(wrong, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise DarkroomError(f"judge.engine_args: this version of vLLM takes no {wrong}{hint}")
        if cpu and section.device == "cuda":
            raise DarkroomError("judge.device is cuda, but vLLM sees no GPU; ask for one, or set device: cpu")
        if not cpu and section.device == "cpu":
            raise DarkroomError("judge.device is cpu, but this vLLM is not built for the CPU; set engine: transformers")
        self.device = "cpu" if cpu else current_platform.get_device_name()
        # On the CPU vLLM computes layers of linear attention (Qwen3.5) in bfloat16 alone.
        linear = "linear_attention" in (getattr(self.config.get_text_config(), "layer_types", None) or ())
        own = {"auto": ("bfloat16" if linear else "float32") if cpu else "auto"}
        dtype: Any = own.get(section.dtype, section.dtype)
        if cpu and linear and dtype != "bfloat16":
            raise DarkroomError(
                f"judge.dtype is {dtype}, but on the CPU vLLM computes {self.path} in bfloat16 alone; set auto"
            )
        self.dtype = dtype
        gpus, heads = 1 if cpu else section.gpus, self.config.get_text_config().num_attention_heads
        if heads % gpus:
            raise DarkroomError(
                f"judge.gpus is {gpus}, which does not divide the {heads} attention heads of {self.path}; use a number that does"
            )
        host = {}
        if cpu:  # a fixed, small cache: the default is a share of the host's memory, refused where that is small
            host = {"enforce_eager": True, "gpu_memory_utilization": 0.1}
            host["kv_cache_memory_bytes"] = max(256 * 2**20, 2 * self.cache_bytes())
            host["max_num_seqs"] = 16
        try:
            self.llm = LLM(
                model=self.path,
                dtype=dtype,
                seed=0,
                tensor_parallel_size=gpus,
                limit_mm_per_prompt={"image": self.images_each, "video": 0},
                structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
                **{"max_model_len": self.max_length, "use_tqdm_on_load": False} | host | section.engine_args,
            )
        except Exception as error:  # an engine fails in many ways; all of them are the environment's
            raise DarkroomError(f"judge: vLLM cannot start with {self.path}: {_first_line(error)}") from error
        keep_freed_memory()
        say(f"judge: vLLM on {self.device} as {self.dtype}, context {self.max_length} tokens")

    def cache_bytes(self) -> int:
        """Bytes of keys and values of one question of the greatest length, in float32."""
        text = self.config.get_text_config()
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return 2 * 4 * text.num_hidden_layers * text.num_key_value_heads * head * self.max_length

    def reply(self, ready: list[Prompt]) -> list[Answer]:
        # The questions about a picture share what vLLM made of it: pixels, the vision tower's output, keys and values. What was made
        # for earlier questions goes: memory stays bounded, and answers depend on no more than what is asked together.
        self.llm.reset_prefix_cache()
        self.llm.llm_engine.reset_encoder_cache()
        self.llm.reset_mm_cache()
        return self._reply(ready)

    def _reply(self, ready: list[Prompt]) -> list[Answer]:
        if not ready:
            return []
        prompts: list[Any] = [
            {
                "prompt_token_ids": prompt.ids,
                "multi_modal_data": {"image": prompt.images},
                "multi_modal_uuids": {"image": [picture.name for picture in prompt.pictures]},
            }
            for prompt in ready
        ]
        try:
            outputs = self.llm.generate(prompts, [self._sampling(prompt.ask) for prompt in ready], use_tqdm=False)
        except ValueError as error:  # one question that vLLM does not take must not cost the others their answers
            if len(ready) == 1:
                return [Answer(error=f"the judge cannot take this question: {_first_line(error)}")]
            return [answer for one in ready for answer in self._reply([one])]
        return [self._answer(one.ask, output.outputs[0]) for one, output in zip(ready, outputs, strict=True)]

    def _sampling(self, ask: Ask) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        if labels := self.label_ids(ask.question):
            ids = [token for tokens in labels.values() for token in tokens]
            return SamplingParams(temperature=0, max_tokens=1, logprob_token_ids=ids)
        schema = StructuredOutputsParams(json=ask.question.schema) if ask.question.type == "json" else None
        return SamplingParams(
            temperature=self.section.temperature,
            top_p=self.section.top_p,
            max_tokens=self.section.max_tokens,
            seed=ask.seed,
            structured_outputs=schema,
        )

    def _answer(self, ask: Ask, output: Any) -> Answer:
        from math import exp

        if not (labels := self.label_ids(ask.question)):
            return Answer(reply=output.text, cut=len(output.token_ids) if output.finish_reason == "length" else None)
        logprobs = output.logprobs[0]
        p = {answer: sum(exp(logprobs[i].logprob) for i in ids if i in logprobs) for answer, ids in labels.items()}
        return Answer(reply=output.text, probabilities=p)


class TransformersJudge(Judge):
    """The same judge through transformers, one question at a time."""

    def __init__(self, section: models.Judge, kind: str, rubric: Rubric):
        super().__init__(section, kind, rubric)
        import xgrammar
        from transformers import AutoModelForImageTextToText

        from darkroom.engines.diffusion import device_name, resolve_device, resolve_dtype

        device = resolve_device(section.device, "judge")
        dtype = resolve_dtype(section.dtype, device)
        self.dtype, self.device = str(dtype), device_name(device)
        try:
            model = AutoModelForImageTextToText.from_pretrained(self.path, dtype=dtype, use_safetensors=True)
            self.model: Any = model.eval().to(device)
        except Exception as error:
            raise DarkroomError(f"judge.model: cannot load {self.path}: {_first_line(error)}") from error
        vocabulary = self.config.get_text_config().vocab_size
        info = xgrammar.TokenizerInfo.from_huggingface(self.tokenizer, vocab_size=vocabulary)
        self.compiler = xgrammar.GrammarCompiler(info)
        say(f"judge: transformers on {self.device} as {self.dtype}, context {self.max_length} tokens")

    def reply(self, ready: list[Prompt]) -> list[Answer]:
        import torch

        with torch.no_grad():
            return [self._one(prompt) for prompt in ready]

    def _one(self, prompt: Prompt) -> Answer:
        import torch

        ask, text = prompt.ask, self.text(prompt.ask.text, len(prompt.pictures))
        inputs = self.processor(text=[text], images=prompt.images, add_special_tokens=False, return_tensors="pt")
        if reason := self.too_long(inputs["input_ids"].shape[1]):
            return Answer(error=reason)
        inputs = inputs.to(self.model.device)
        if labels := self.label_ids(ask.question):
            logits = self.model(**inputs, logits_to_keep=1).logits[0, -1]
            p = torch.softmax(logits.float(), -1)
            reply = self.tokenizer.decode([int(logits.argmax())], skip_special_tokens=True)
            return Answer(reply=reply, probabilities={answer: float(p[ids].sum()) for answer, ids in labels.items()})
        from xgrammar.contrib.hf import LogitsProcessor

        held = []
        if ask.question.type == "json":
            schema = ask.question.schema
            grammar = self.compiler.compile_json_schema(schema, any_whitespace=False, separators=(",", ":"))
            held = [LogitsProcessor(grammar)]
        # The checkpoint's own generation_config must not change what the config asks for; vLLM does not read it either.
        sampling: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0, "top_k": 0}
        if self.section.temperature > 0:
            torch.manual_seed(ask.seed)
            sampling |= {"do_sample": True, "temperature": self.section.temperature, "top_p": self.section.top_p}
        ids = self.model.generate(**inputs, max_new_tokens=self.section.max_tokens, logits_processor=held, **sampling)
        new = ids[0, inputs["input_ids"].shape[1] :]
        ends = self.model.generation_config.eos_token_id
        ended = int(new[-1]) in (ends if isinstance(ends, list) else [ends, self.tokenizer.eos_token_id])
        reply = self.tokenizer.decode(new, skip_special_tokens=True)
        return Answer(reply=reply, cut=None if ended or len(new) < self.section.max_tokens else len(new))


def refuse_thinking(model: str, prompt: str) -> None:
    """Raises DarkroomError for a model that thinks before it answers; prompt: one of its template."""
    # Where the template opens a thought that it does not close, or a model of this name does it by itself.
    named = re.search(r"thinking", Path(model).name + "/" + _hub_name(Path(model)), re.IGNORECASE)
    if named or prompt.rfind("<think>") > prompt.rfind("</think>"):
        raise DarkroomError(
            f"judge.model: {model}: thinks before it answers, so its first token is no answer; use its variant that does not (Instruct)"
        )


def _hub_name(folder: Path) -> str:
    """The name of a model in the folder of the hub's cache that it lies in (models--owner--name/snapshots/revision)."""
    return folder.parents[1].name if len(folder.parents) > 1 and folder.parent.name == "snapshots" else ""


def _own_pixels(image_processor: Any) -> tuple[int, int]:
    """(least, most) pixels a checkpoint's image processor asks for."""
    size = image_processor.size
    return int(size["shortest_edge"]), int(size["longest_edge"])


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def open_judge(section: models.Judge, kind: str, rubric: Rubric) -> Judge:
    """The judge that the config names."""
    return {"vllm": VllmJudge, "transformers": TransformersJudge}[section.engine](section, kind, rubric)
