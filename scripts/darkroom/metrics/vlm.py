"""Ask a vision-language model of the Qwen-VL family: through vLLM, or through transformers with the same answers.

Both engines see the same prompt text (the checkpoint's chat template) and the same pixels (qwen-vl-utils, by the
model's own patch size), decode JSON under the same grammar (xgrammar) and read yes and no from the same logits.
"""

import difflib
import os
from dataclasses import fields
from typing import Any

from darkroom.config import models
from darkroom.errors import DarkroomError
from darkroom.jobs.runtime import say
from darkroom.metrics.base import Answer, Ask
from darkroom.metrics.rubric import Rubric
from darkroom.plan.stages import STAGES

QUESTION_TOKENS = 4096  # room for a question's text: a prompt of some 15 000 characters
_YES = ("yes", "Yes", " yes", " Yes", "YES")
_NO = ("no", "No", " no", " No", "NO")


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
        self.tokenizer = self.processor.tokenizer
        image = self.processor.image_processor
        self.patch_size, self.merge_size = image.patch_size, image.merge_size
        if self.merge_size != 2:
            raise DarkroomError(f"judge.model: {self.path}: not of the Qwen-VL family (merge_size {self.merge_size})")
        least, most = _own_pixels(image)
        # Within the checkpoint's own limits, so that no engine resizes the pictures once more.
        self.min_pixels = min(max(section.min_pixels or least, least), most)
        self.max_pixels = min(max(section.max_pixels or most, self.min_pixels), most)
        self.yes, self.no = self._label_ids(_YES), self._label_ids(_NO)
        if not self.yes or not self.no:
            raise DarkroomError(f"judge.model: {self.path}: its tokenizer has no single token for yes and no")
        added = self.tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in added if token.special} | set(self.tokenizer.all_special_tokens)
        self.special = sorted(special, key=len, reverse=True)
        budget = self.images_each * (self.max_pixels // (self.patch_size * 2) ** 2 + 2)
        own = getattr(self.config.get_text_config(), "max_position_embeddings", 1 << 20)
        self.max_length = min(own, budget + QUESTION_TOKENS + section.max_tokens)
        self.max_length = section.engine_args.get("max_model_len", self.max_length)

    def _label_ids(self, words: tuple[str, ...]) -> list[int]:
        encoded = [self.tokenizer.encode(word, add_special_tokens=False) for word in words]
        return sorted({ids[0] for ids in encoded if len(ids) == 1})

    def conversation(self, ask: Ask) -> tuple[str, list[Any]]:
        """(prompt text, PIL images resized to the pixel budget) of a question. Raises ValueError for an odd image."""
        from qwen_vl_utils import process_vision_info

        limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        content = [{"type": "image", "image": image, **limits} for image in ask.images]
        text = ask.text
        for token in self.special:  # a prompt is data: it must not end its turn, or stand for an image
            text = text.replace(token, f"{token[0]} {token[1:]}")
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
        images, _ = process_vision_info(messages, image_patch_size=self.patch_size)
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), images

    def too_long(self, text: str, images: list[Any]) -> str | None:
        """Why a question does not fit the judge's context, or None."""
        side = self.patch_size * 2
        tokens = len(self.tokenizer.encode(text)) + sum((i.width // side) * (i.height // side) for i in images)
        room = self.max_length - self.section.max_tokens
        return None if tokens <= room else f"the question has {tokens} tokens; the judge takes {room}"

    def ask(self, asks: list[Ask]) -> list[Answer]:
        """One answer per question, in order."""
        answers: list[Answer | None] = []
        ready = []
        for ask in asks:
            try:
                text, images = self.conversation(ask)
                reason = self.too_long(text, images)
            except ValueError as error:
                text, images, reason = "", [], f"the judge cannot take this image: {_first_line(error)}"
            answers.append(Answer(error=reason) if reason else None)
            if not reason:
                ready.append((ask, text, images))
        replies = iter(self.reply(ready))
        return [answer or next(replies) for answer in answers]

    def reply(self, ready: list[tuple[Ask, str, list[Any]]]) -> list[Answer]:
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
        dtype: Any = {"auto": "float32" if cpu else "auto"}.get(section.dtype, section.dtype)
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
            host |= {"max_num_seqs": 16, "enable_prefix_caching": False}
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
        say(f"judge: vLLM on {self.device} as {self.dtype}, context {self.max_length} tokens")

    def cache_bytes(self) -> int:
        """Bytes of keys and values of one question of the greatest length, in float32."""
        text = self.config.get_text_config()
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return 2 * 4 * text.num_hidden_layers * text.num_key_value_heads * head * self.max_length

    def reply(self, ready: list[tuple[Ask, str, list[Any]]]) -> list[Answer]:
        if not ready:
            return []
        prompts: list[Any] = [{"prompt": text, "multi_modal_data": {"image": images}} for _, text, images in ready]
        try:
            outputs = self.llm.generate(prompts, [self._sampling(ask) for ask, _, _ in ready], use_tqdm=False)
        except ValueError as error:  # one question that vLLM does not take must not cost the others their answers
            if len(ready) == 1:
                return [Answer(error=f"the judge cannot take this question: {_first_line(error)}")]
            return [answer for one in ready for answer in self.reply([one])]
        return [self._answer(ask, output.outputs[0]) for (ask, _, _), output in zip(ready, outputs, strict=True)]

    def _sampling(self, ask: Ask) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        if ask.question.type == "yes_no":
            return SamplingParams(temperature=0, max_tokens=1, logprob_token_ids=self.yes + self.no)
        return SamplingParams(
            temperature=self.section.temperature,
            top_p=self.section.top_p,
            max_tokens=self.section.max_tokens,
            seed=ask.seed,
            structured_outputs=StructuredOutputsParams(json=ask.question.schema),
        )

    def _answer(self, ask: Ask, output: Any) -> Answer:
        from math import exp

        if ask.question.type == "json":
            return Answer(reply=output.text, cut=len(output.token_ids) if output.finish_reason == "length" else None)
        logprobs = output.logprobs[0]
        p_yes, p_no = (sum(exp(logprobs[i].logprob) for i in ids if i in logprobs) for ids in (self.yes, self.no))
        return Answer(reply=output.text, p_yes=p_yes, p_no=p_no)


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

    def reply(self, ready: list[tuple[Ask, str, list[Any]]]) -> list[Answer]:
        import torch

        with torch.no_grad():
            return [self._one(ask, text, images) for ask, text, images in ready]

    def _one(self, ask: Ask, text: str, images: list[Any]) -> Answer:
        import torch

        inputs = self.processor(text=[text], images=images, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        if ask.question.type == "yes_no":
            logits = self.model(**inputs, logits_to_keep=1).logits[0, -1]
            p = torch.softmax(logits.float(), -1)
            reply = self.tokenizer.decode([int(logits.argmax())], skip_special_tokens=True)
            return Answer(reply=reply, p_yes=float(p[self.yes].sum()), p_no=float(p[self.no].sum()))
        from xgrammar.contrib.hf import LogitsProcessor

        grammar = self.compiler.compile_json_schema(ask.question.schema, any_whitespace=False, separators=(",", ":"))
        # The checkpoint's own generation_config must not change what the config asks for; vLLM does not read it either.
        sampling: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0, "top_k": 0}
        if self.section.temperature > 0:
            torch.manual_seed(ask.seed)
            sampling |= {"do_sample": True, "temperature": self.section.temperature, "top_p": self.section.top_p}
        ids = self.model.generate(
            **inputs, max_new_tokens=self.section.max_tokens, logits_processor=[LogitsProcessor(grammar)], **sampling
        )
        new = ids[0, inputs["input_ids"].shape[1] :]
        ends = self.model.generation_config.eos_token_id
        ended = int(new[-1]) in (ends if isinstance(ends, list) else [ends, self.tokenizer.eos_token_id])
        reply = self.tokenizer.decode(new, skip_special_tokens=True)
        return Answer(reply=reply, cut=None if ended or len(new) < self.section.max_tokens else len(new))


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
