"""Pydantic models of a run. A field marked (D) is not published for TIPS: its value is our decision, not theirs."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from pydantic import model_validator as _model_validator

from tips_ray.config.variants import VARIANTS, image_sizes, text_sizes

Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
MOST = 2**63 - 1
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]


class Schema(BaseModel):
    """Frozen and closed: an unknown key is an error. A field's docstring is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @_model_validator(mode="before")
    @classmethod
    def _numbers_are_meant(cls, tree: Any) -> Any:
        """Refuse true where a number is meant, which pydantic takes as 1, and whole numbers that no machine counts."""
        for name, value in tree.items() if isinstance(tree, Mapping) else ():
            field = cls.model_fields.get(name)
            for one in value if isinstance(value, list | tuple) else [value]:
                if isinstance(one, bool) and field and _takes_numbers(field.annotation):
                    raise ValueError(f"{name} must be a number, not {str(one).lower()}")
                if isinstance(one, int) and abs(one) > MOST:
                    raise ValueError(f"{name} must be at most {MOST:,}")
        return tree


class ImageEncoderConfig(Schema):
    """A ViT with two CLS tokens. Named sizes are in `tips_ray.config.variants`."""

    width: PositiveInt
    depth: PositiveInt
    num_heads: PositiveInt
    ffn_hidden: PositiveInt
    """Hidden width of the feed-forward block; for `swiglu` the width after gating."""
    ffn: Literal["mlp", "swiglu"] = "mlp"
    patch_size_px: PositiveInt = 14
    image_size_px: PositiveInt = 448
    """Side of the square image whose patch grid has the learned positions; other sizes interpolate them."""
    gelu: Literal["tanh", "erf"] = "tanh"
    """(D) Form of GELU: the authors trained in JAX with tanh; their torch files are evaluated with erf."""
    layer_scale_init: PositiveFloat = 1.0
    """(D) Initial LayerScale gain; 1.0 as in the released v2 configuration, DINOv2 starts from 1e-5."""
    drop_path_rate: ShareBelowOne = 0.0
    """(D) Share of residual branches dropped per sample, the same in every block; keyed by sample, see `keyed`. The
    clean view keeps all of them where it is the teacher's as well (`objective.teacher: ema_heads`)."""

    @_model_validator(mode="after")
    def _sizes_divide(self):
        _require_divides("width", self.width, "num_heads", self.num_heads)
        _require_divides("image_size_px", self.image_size_px, "patch_size_px", self.patch_size_px)
        return self

    @property
    def grid(self) -> int:
        """Patches along one side of the native image."""
        return self.image_size_px // self.patch_size_px


class TextEncoderConfig(Schema):
    """A bidirectional transformer, as wide as the image encoder because there is no projection."""

    width: PositiveInt
    depth: PositiveInt
    num_heads: PositiveInt
    ffn_hidden: PositiveInt
    vocab_size: Annotated[int, Field(ge=4)] = 32_000
    max_tokens: Annotated[int, Field(ge=2)] = 64
    """Longest text; positions are fixed sinusoids, so shorter input costs less."""

    @_model_validator(mode="after")
    def _sizes_divide(self):
        _require_divides("width", self.width, "num_heads", self.num_heads)
        if self.width % 2 or self.width < 4:
            raise ValueError(f"width ({self.width}) must be even and at least 4: positions are [sin | cos] halves")
        return self


class PrototypeHeadConfig(Schema):
    """Projection to prototype scores: three linear layers, L2 norm, weight-normed linear."""

    num_prototypes: PositiveInt = 32_768
    """K, the number of prototypes (published as 32k)."""
    hidden: PositiveInt = 2048
    """(D) Width of the two hidden layers; DINOv2's public value."""
    bottleneck: PositiveInt = 256
    """(D) Width of the unit-norm vector that is compared with the prototypes; DINOv2's public value."""


class ObjectiveConfig(Schema):
    """1/2 (L_CLIP + L^_CLIP) + alpha L_distill + beta L_mask, with the switches of TIPSv2 off by default.

    To train with one caption, set its weight to 1 and the other's to 0; the other CLS token then acts as a register.
    """

    alpha: NonNegativeFloat = 1.0
    """Weight of self-distillation (published). 0 leaves out the local crops' pass."""
    beta: NonNegativeFloat = 2.0
    """Weight of masked image modelling (published). 0 leaves out the masked pass."""
    web_weight: NonNegativeFloat = 0.5
    """Weight of L_CLIP between CLS-web and the web caption (published). 0 leaves the term out."""
    synthetic_weight: NonNegativeFloat = 0.5
    """Weight of L^_CLIP between CLS-synthetic and the synthetic caption (published). 0 leaves the term out."""
    initial_temperature: PositiveFloat = 0.07
    """(D) Start of the learned contrastive temperature, one for both captions; learned as a logarithm."""
    student_temperature: PositiveFloat = 0.1
    """(D) Divisor of the student's prototype scores."""
    teacher_temperature_start: PositiveFloat = 0.04
    """(D) Divisor of the centred teacher scores at step 0."""
    teacher_temperature: PositiveFloat = 0.07
    """(D) Divisor of the centred teacher scores after the warm-up."""
    teacher_temperature_warmup: Share = 0.3
    """(D) Share of all steps over which both teacher temperatures rise linearly."""
    masked_student_temperature: PositiveFloat | None = None
    """(D) `student_temperature` of the masked loss, the method's tau'_s; None: as in self-distillation."""
    masked_teacher_temperature_start: PositiveFloat | None = None
    """(D) `teacher_temperature_start` of the masked loss; None: as in self-distillation."""
    masked_teacher_temperature: PositiveFloat | None = None
    """(D) `teacher_temperature` of the masked loss, the method's tau'_t; None: as in self-distillation."""
    center_momentum: Share = 0.9
    """(D) Share of the old centre that a step keeps."""
    center_start: Literal["zero", "bias_corrected"] = "zero"
    """(D) Centres start at zero and approach the mean scores as slowly as the momentum lets them (`zero`, DINO's form);
    or each is at once the weighted mean of the batches so far, as Adam's averages are (`bias_corrected`)."""
    ema_momentum: Share = 0.994
    """(D) Share of the old teacher that a step keeps."""
    ema_momentum_final: Share | None = None
    """(D) EMA momentum at the last step, reached on a half cosine; None: it is constant. DINOv2 ends at 1."""
    prototype_freeze: Share = 0.01
    """(D) Share of all steps during which the prototypes do not move."""
    contrastive_view: Literal["clean", "masked"] = "clean"
    """(D) Which student pass feeds the contrastive terms: `clean` as the equations are written, `masked` is cheaper."""
    teacher: Literal["ema", "ema_heads", "frozen"] = "ema"
    """`ema` (TIPS); `ema_heads` (TIPSv2): only heads are averaged and the clean student pass, without gradient, is the
    teacher's encoder; `frozen` (TIPSv2 distillation): a trained larger teacher with its heads, and no masking."""
    frozen_teacher: str | None = None
    """Run folder (local or s3://) or one checkpoint of it, whose averaged encoder and heads are the `frozen` teacher.
    Its width and depth may differ; `head.num_prototypes` and `image.patch_size_px` must be this run's."""
    visible_weight: NonNegativeFloat = 0.0
    """iBOT++ (TIPSv2) at 1.0: weight of the mean over visible patches beside the mean over masked ones."""

    @_model_validator(mode="after")
    def _meets_a_caption(self):
        if not self.web_weight and not self.synthetic_weight:
            raise ValueError("web_weight (0) and synthetic_weight (0): one of them must be above 0")
        return self

    @_model_validator(mode="after")
    def _switches_agree(self):
        if self.contrastive_view == "masked" and self.beta == 0:
            raise ValueError("contrastive_view (masked) needs the masked pass, which beta (0) leaves out")
        if self.contrastive_view == "masked" and self.teacher != "ema":
            raise ValueError(
                f"contrastive_view (masked) and teacher ({self.teacher}): this teacher needs the clean pass"
            )
        if self.frozen_teacher is not None and self.teacher != "frozen":
            raise ValueError(f"frozen_teacher ({self.frozen_teacher}) needs teacher=frozen, not {self.teacher}")
        if self.teacher == "frozen" and self.visible_weight:
            raise ValueError(
                f"visible_weight ({self.visible_weight}) must be 0 with teacher (frozen): nothing is masked"
            )
        return self


class OptimizerConfig(Schema):
    """Optimizer; biases, norms, tokens, positions, LayerScale and the temperature do not decay."""

    name: Literal["adamw", "adafactor"] = "adamw"
    """(D) Adafactor keeps one number per row and column of a matrix instead of two per weight."""
    betas: tuple[float, float] = (0.9, 0.95)
    """(D) Decay rates of AdamW's averages; Adafactor ignores them."""
    weight_decay: NonNegativeFloat = 0.04
    """(D) Decoupled decay of the matrices."""
    max_grad_norm: PositiveFloat = 1.0
    """(D) The global gradient norm is clipped to this."""
    layer_decay: PositiveShare = 1.0
    """(D) Block i of d blocks, counted from 0, learns at layer_decay^(d - i) of the rate, in the image and the text
    encoder each; embeddings, tokens and positions at layer_decay^(d + 1); final norms, heads, temperature at 1."""
    patch_embed_lr_factor: PositiveFloat = 1.0
    """(D) Additional factor of the patch embedding's rate; DINOv2 uses 0.2."""


class ScheduleChange(Schema):
    """Values that replace the config's from a step on; None keeps the earlier value.

    A resumed run may add changes from the step it resumes at; earlier changes must stay the same.
    """

    from_step: NonNegativeInt
    """Optimizer steps completed before the first update that uses the values."""
    peak_lr: PositiveFloat | None = None
    weight_decay: NonNegativeFloat | None = None
    max_grad_norm: PositiveFloat | None = None
    alpha: PositiveFloat | None = None
    beta: PositiveFloat | None = None
    student_temperature: PositiveFloat | None = None
    teacher_temperature: PositiveFloat | None = None
    """The end of the ramp: during the warm-up it goes on towards this value from where it would be by now."""
    masked_student_temperature: PositiveFloat | None = None
    masked_teacher_temperature: PositiveFloat | None = None
    ema_momentum: Share | None = None
    ema_momentum_final: Share | None = None


class ScheduleConfig(Schema):
    """Optimizer steps and the learning rate over them."""

    total_steps: Annotated[int, Field(gt=0, le=10**12)] = 90_000
    """Optimizer steps of the whole run, across restarts."""
    peak_lr: PositiveFloat = 1e-3
    """(D) Learning rate at the end of warm-up."""
    warmup: ShareBelowOne = 0.05
    """(D) Share of all steps over which the learning rate rises linearly."""
    final_lr_ratio: Share = 0.0
    """(D) Learning rate at the last step over `peak_lr`."""
    shape: Literal["cosine", "constant"] = "cosine"
    """(D) Shape between warm-up and last step: half a cosine, or the peak up to a linear cooldown."""
    cooldown: PositiveShare = 0.2
    """(D) Share of all steps, the last ones, over which `constant` falls to its end."""
    changes: tuple[ScheduleChange, ...] = ()
    """Values that change at some step, in rising order of `from_step`."""

    @property
    def warmup_steps(self) -> int:
        return round(self.warmup * self.total_steps)

    @property
    def cooldown_steps(self) -> int:
        return max(round(self.cooldown * self.total_steps), 1)

    @_model_validator(mode="after")
    def _phases_fit(self):
        if self.shape == "constant" and self.warmup_steps + self.cooldown_steps > self.total_steps:
            raise ValueError(
                f"warmup ({self.warmup}) and cooldown ({self.cooldown}) are shares of all steps and together at most 1"
            )
        return self

    @_model_validator(mode="after")
    def _changes_are_in_order(self):
        steps = [change.from_step for change in self.changes]
        if any(later <= earlier for earlier, later in pairwise(steps)):
            raise ValueError(f"changes: from_step must rise from one change to the next, not {steps}")
        return self


class StartConfig(Schema):
    """Weights that a new run starts from; a run that resumes uses its checkpoint and ignores this."""

    uri: str
    """A run folder (local or s3://; its newest checkpoint that verifies) or one checkpoint of it: student, teacher,
    heads, centres and temperature, without optimizer and step. Or released encoders without heads: a transformers
    folder, or an npz, a folder with them, or a pattern such as `weights/tips_v2_b14_{vision,text}.npz`."""
    warmup_heads_steps: NonNegativeInt = 0
    """(D) First steps in which only the prototype heads train, so that random heads do not spoil trained encoders."""


class TrainConfig(Schema):
    """Everything that one optimizer step depends on."""

    variant: Literal["S", "B", "L", "So400m", "g"] | None = None
    """Published sizes that `image` and `text` start from; their fields override them. None: all sizes are given."""
    image: ImageEncoderConfig
    text: TextEncoderConfig
    head: PrototypeHeadConfig = PrototypeHeadConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    start: StartConfig | None = None
    """Weights to start from; None: random weights."""
    seed: NonNegativeInt = 0

    @_model_validator(mode="before")
    @classmethod
    def _start_from_variant(cls, tree: Any) -> Any:
        variant = tree.get("variant") if isinstance(tree, Mapping) else None
        if variant not in VARIANTS:
            return tree  # None, or a mistake that validation names
        image = {**image_sizes(variant), **(tree.get("image") or {})}
        return {**tree, "image": image, "text": {**text_sizes(variant), **(tree.get("text") or {})}}

    @_model_validator(mode="after")
    def _no_change_wakes_a_loss(self):
        for name in ("alpha", "beta"):
            changed = any(getattr(change, name) is not None for change in self.schedule.changes)
            if changed and not getattr(self.objective, name):
                raise ValueError(
                    f"schedule.changes: {name} cannot change, since objective.{name} (0) leaves out its pass"
                )
        return self

    @_model_validator(mode="after")
    def _widths_meet(self):
        if self.image.width != self.text.width:
            raise ValueError(
                f"text.width ({self.text.width}) must equal image.width ({self.image.width}): there is no projection"
            )
        return self

    @_model_validator(mode="after")
    def _warmup_of_heads_fits(self):
        steps = self.start.warmup_heads_steps if self.start else 0
        if steps >= self.schedule.total_steps:
            raise ValueError(
                f"start.warmup_heads_steps ({steps}) must be below schedule.total_steps ({self.schedule.total_steps})"
            )
        if steps and not self.objective.alpha and not self.objective.beta:
            raise ValueError(
                f"start.warmup_heads_steps ({steps}) must be 0 with objective.alpha (0) and objective.beta (0): "
                "no head is trained"
            )
        return self


def _takes_numbers(annotation: Any) -> bool:
    """Whether a field takes numbers and no truth values; an annotation may be a union or a tuple."""
    parts = list(_leaves(annotation))
    return (int in parts or float in parts) and bool not in parts


def _leaves(annotation: Any) -> Iterator[Any]:
    inside = get_args(annotation)
    if inside and get_origin(annotation) is not Literal:
        for part in inside:
            yield from _leaves(part)
    else:
        yield annotation


def _require_divides(name: str, value: int, divisor_name: str, divisor: int) -> None:
    if value % divisor:
        raise ValueError(f"{name} ({value}) must be divisible by {divisor_name} ({divisor})")
