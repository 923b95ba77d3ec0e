import { NpucError } from '../compiler/errors.ts';
import type { Encoding } from '../compiler/ir/encoding.ts';

export const SCHEMES = ['w4a16', 'w8a16', 'w8a8', 'fp16', 'dynamic-int8', 'dynamic-int4'] as const;
export type Scheme = (typeof SCHEMES)[number];

/** How the weights of a linear layer are written. `block` 0 is one scale per output channel. */
export interface WeightForm {
  readonly bits: 4 | 8;
  readonly block: 0 | 16 | 32 | 64 | 128 | 256;
  /** Scales of blocks as half floats; absent: in the two levels of LPBQ. */
  readonly scales?: 'f16';
}

/** A choice for the values or weights whose name, or whose source node's name, matches a regular expression. */
export interface Override {
  readonly match: string;
  readonly weight?: WeightForm;
  readonly activation?: 8 | 16;
  /** Why, where it is not the user's own choice. */
  readonly why?: string;
}

/** What quantization is asked for. A plan says what it became. */
export interface Recipe {
  readonly scheme: Scheme;
  readonly weight: WeightForm;
  readonly activation: 8 | 16;
  /** Bits of the key/value cache. */
  readonly cache: 8 | 16;
  readonly head: WeightForm;
  readonly range: 'min-max' | 'percentile' | 'histogram-mse';
  /** Share of the distribution's tail that `percentile` may cut on each side. */
  readonly percentile: number;
  /** Share by which 16-bit ranges exceed what calibration saw, on either side; 0 when absent. */
  readonly headroom?: number;
  /** The same of products of two values that have long tails. */
  readonly productHeadroom?: number;
  /** SmoothQuant-style migration: exponent of the activation maximum, 0 for none, `search` to measure. */
  readonly migration: number | 'search';
  /** Automatic promotion to 16 bits of what reads or writes a value of this typical SQNR in dB or less at 8 bits. */
  readonly promoteBelow: number;
  /**
   * Whether a decoder's residual stream is rotated: `auto` where single channels of it dwarf the rest and it pays, as a
   * finished recipe says `hadamard` or `none`.
   */
  readonly rotation: Rotation;
  /**
   * Whether channels of a decoder's gated products that dwarf the others get a product, and a scale, of their own: `auto` where
   * there are such channels; a finished recipe says `apart` or `none`.
   */
  readonly outliers: Outliers;
  /** How 4-bit weights of a decoder become integers: each to the nearest, or each making up for those before it (GPTQ). */
  readonly rounding: Rounding;
  readonly overrides: readonly Override[];
}

/** Integer weights under float activations, which the runtime's own kernels quantize row by row while they run. */
export function isDynamic({ scheme }: Pick<Recipe, 'scheme'>): boolean {
  return scheme === 'dynamic-int8' || scheme === 'dynamic-int4';
}

/** Whether values inside the graph stay floats, so that no activation has an encoding. */
export function hasFloatActivations(recipe: Pick<Recipe, 'scheme'>): boolean {
  return recipe.scheme === 'fp16' || isDynamic(recipe);
}

export const ROUNDINGS = ['nearest', 'gptq'] as const;
export type Rounding = (typeof ROUNDINGS)[number];

export const ROTATIONS = ['auto', 'none', 'hadamard'] as const;
export type Rotation = (typeof ROTATIONS)[number];

export const OUTLIERS = ['auto', 'none', 'apart'] as const;
export type Outliers = (typeof OUTLIERS)[number];

export interface RecipeOptions {
  readonly block?: number;
  readonly cache?: 8 | 16;
  readonly range?: Recipe['range'];
  readonly rounding?: Rounding;
  readonly rotation?: Rotation;
  readonly outliers?: Outliers;
  readonly overrides?: readonly Override[];
}

/** Blocks that XNNPACK multiplies with rows that it quantizes itself: multiples of 32. */
const DYNAMIC_BLOCKS: readonly WeightForm['block'][] = [0, 32, 64, 128, 256];
const LPBQ_BLOCKS: readonly WeightForm['block'][] = [0, 16, 32, 64];

/**
 * The default recipe of a scheme. w4a16 uses LPBQ blocks of 64 unless told otherwise, dynamic-int4 blocks of 32 with a half
 * float each; head and embedding stay at 8 bits (facts accuracy: per-channel int4 without error compensation is not usable
 * on real checkpoints).
 * @throws QT101 unknown scheme or block
 */
export function makeRecipe(name: string, options: RecipeOptions = {}): Recipe {
  if (!SCHEMES.includes(name as Scheme)) {
    throw new NpucError('QT101', { message: `unknown scheme ${name}`, hint: `one of ${SCHEMES.join(', ')}` });
  }
  const scheme = name as Scheme;
  for (const override of options.overrides ?? []) {
    compileMatch(override.match);
    if (isDynamic({ scheme })) requireDynamicForm(override);
  }
  const narrow = scheme === 'w8a8';
  const four = scheme === 'w4a16' || scheme === 'dynamic-int4';
  return {
    scheme,
    weight: weightForm(scheme, options.block),
    activation: narrow ? 8 : 16,
    cache: options.cache ?? 8,
    head: { bits: 8, block: 0 },
    // Cutting tails costs more than it buys: SmolLM2 at w8a8 has KL 0.070 with min-max, 0.089 with percentile, 0.172 with
    // histogram-mse; images do not mind.
    range: options.range ?? 'min-max',
    percentile: 1e-5,
    // Layer 2's gated product in SmolLM2 was cut off at 3.1 and reached 5.8 in other text: that alone cost a quarter of the KL.
    // More room for other values does not help, and costs them steps.
    ...(narrow ? {} : { productHeadroom: 1 }),
    migration: narrow ? 0.5 : four ? 'search' : 0,
    promoteBelow: 26,
    // SmolLM2's KL at w8a16 goes from 0.012 to 0.004 with both, and the simulator agrees to 48 dB instead of 23. At w8a8 a
    // rotation fills every channel with the outliers' tokens, and more values must be promoted than without (KL 0.064, not 0.043).
    rotation: options.rotation ?? (scheme === 'w8a16' || scheme === 'w4a16' ? 'auto' : 'none'),
    // At w8a8 what goes apart is promoted less, and the KL goes from 0.043 to 0.059.
    outliers: options.outliers ?? (scheme === 'w8a16' || scheme === 'w4a16' ? 'auto' : 'none'),
    // SmolLM2 with LPBQ 64 has KL 0.19 with nearest, 0.09 with GPTQ (docs/accuracy.md).
    rounding: options.rounding ?? (four ? 'gptq' : 'nearest'),
    overrides: options.overrides ?? [],
  };
}

/** @throws QT101 for blocks that no dynamic kernel multiplies: LiteRT computes 8-bit ones wrongly, without a word */
function requireDynamicForm({ match, weight }: Override): void {
  if (!weight || weight.block === 0 || (weight.bits === 4 && DYNAMIC_BLOCKS.includes(weight.block))) return;
  throw new NpucError('QT101', {
    message: `the override ${match} wants ${weight.bits}-bit weights in blocks of ${weight.block}, which no kernel multiplies with floats`,
    hint: `4 bits in blocks of ${DYNAMIC_BLOCKS.slice(1).join(', ')}, or one scale per channel: block 0`,
  });
}

/** @throws QT101 for a block that the scheme cannot have */
function weightForm(scheme: Scheme, asked: number | undefined): WeightForm {
  const blocks = scheme === 'dynamic-int4' ? DYNAMIC_BLOCKS : LPBQ_BLOCKS;
  const size = asked ?? (scheme === 'w4a16' ? 64 : scheme === 'dynamic-int4' ? 32 : 0);
  const block = blocks.find((each) => each === size);
  if (block === undefined) {
    throw new NpucError('QT101', {
      message: `block size ${size} is not supported`,
      hint: `0 (per channel), ${blocks.slice(1, -1).join(', ')} or ${blocks.at(-1)}`,
    });
  }
  if (scheme === 'w4a16') return { bits: 4, block };
  if (scheme === 'dynamic-int4') return { bits: 4, block, scales: 'f16' };
  return { bits: 8, block: 0 };
}

/** An override that matches the values of one name and no other. */
export function overrideOf(name: string): Override {
  return { match: `^${name.replace(/[.*+?^${}()|[\]\\/]/g, '\\$&')}$` };
}

/** @throws QT102 when the expression is not valid */
export function compileMatch(match: string): RegExp {
  try {
    return new RegExp(match);
  } catch (cause) {
    throw new NpucError('QT102', {
      message: `override ${match} is not a regular expression: ${(cause as Error).message}`,
      cause,
    });
  }
}

type ActivationType = 'u8' | 'u16' | 'i8' | 'i16';

/** The integer formats of one target family (facts qnn-htp 2, litert 2). */
export interface NumberFormat {
  readonly name: 'onnx' | 'htp' | 'litert';
  readonly activation: Readonly<Record<8 | 16, { readonly dtype: ActivationType; readonly symmetric: boolean }>>;
  /** Caches are symmetric: their zero is the type's middle. */
  readonly cache: Readonly<Record<8 | 16, ActivationType>>;
  /** Whether a product may read a cache of another width than its other operand. */
  readonly mixedProducts: boolean;
  /** Output encodings that the target's kernels fix, by op and bits. */
  readonly fixed: Readonly<Record<string, Readonly<Record<8 | 16, Encoding>>>>;
  /** Integer embedding tables: one scale per row, or one scale for all in the activation's type. */
  readonly table: 'row' | 'tensor';
  /** How blocks of weights may be written: one scale a channel where a form is not among these. */
  readonly blocks: readonly ('lpbq' | 'f16')[];
  /** Counts of blocks along the input channels that the target's runtime cannot take, by block size. */
  readonly brokenCounts: Readonly<Partial<Record<WeightForm['block'], ReadonlySet<number>>>>;
  /** Ops whose constant operands stay float because the target computes them from floats. */
  readonly floatConstants: ReadonlySet<string>;
  /** Ops of any graph that the target takes, or computes rightly, at one width only. */
  readonly widths: Readonly<Record<string, 8 | 16>>;
  /** Whether light operators may compute in half floats between integer ones. */
  readonly halfFloats: boolean;
  /** Symmetric type of the computed right operand of a 16-bit product, where it may not be the activations'. */
  readonly rightOperand?: 'i16' | 'u8';
}

/**
 * The form of a matrix of so many input channels that a target can take: one scale per channel where it has no blocks, 8
 * bits where blocks do not divide the channels, and half the block where its runtime cannot take their number.
 */
export function usableForm(form: WeightForm, inputs: number, format: NumberFormat): WeightForm {
  if (form.block === 0) return form;
  if (!takesBlocks(form, format)) return { bits: form.bits, block: 0 };
  if (inputs % form.block !== 0) return { bits: 8, block: 0 };
  if (!format.brokenCounts[form.block]?.has(inputs / form.block)) return form;
  return { bits: form.bits, block: (form.block / 2) as WeightForm['block'] };
}

/** Whether a target has blocks with scales of the form's kind. */
export function takesBlocks(form: WeightForm, format: NumberFormat): boolean {
  return format.blocks.includes(form.scales ?? 'lpbq');
}

/** Width of the cache for a target: one without mixed products would convert the whole cache at every step. */
export function cacheBits(recipe: Recipe, format: NumberFormat): 8 | 16 {
  return format.mixedProducts ? recipe.cache : recipe.activation;
}

const unit = (dtype: ActivationType, scale: number, zero = 0): Encoding => ({
  dtype,
  scale: Float32Array.of(scale),
  zeroPoint: Int32Array.of(zero),
});

/** Qualcomm HTP: unsigned affine activations; u16 x s16 products are exact, u16 x u16 silently becomes u8. */
export const htpFormat: NumberFormat = {
  name: 'htp',
  activation: { 8: { dtype: 'u8', symmetric: false }, 16: { dtype: 'u16', symmetric: false } },
  cache: { 8: 'u8', 16: 'i16' },
  mixedProducts: true,
  fixed: {
    Softmax: { 8: unit('u8', 1 / 255), 16: unit('u16', 1 / 65535) },
    // At 16 bits the vendor's compiler replaces any other encoding of these outputs (read back from its binaries).
    Sigmoid: { 8: unit('u8', 1 / 255), 16: unit('u16', 1 / 65536) },
    HardSigmoid: { 8: unit('u8', 1 / 255), 16: unit('u16', 1 / 65536) },
    Tanh: { 8: unit('u8', 1 / 127, 128), 16: unit('u16', 1 / 32768, 32768) },
  },
  table: 'tensor',
  blocks: ['lpbq'],
  // Its kernel for blocks of 64 gives each of six threads ceil(count / 6) of them and the last one what is left, less than
  // none for these counts: the simulator crashes when it runs such a graph from a compiled binary (docs/simulator.md).
  brokenCounts: { 64: new Set([7, 8, 9, 13, 14, 19]) },
  floatConstants: new Set(),
  // Wrong at the other width: Log (-10 dB), CumSum (-7 dB), weak: Softplus and Mish (42 dB), refused: PRelu, LRN, Einsum
  // (facts of the vendor's simulator).
  halfFloats: true,
  widths: { CumSum: 16, Einsum: 8, LRN: 8, Log: 8, Mish: 8, PRelu: 8, Softplus: 8 },
  rightOperand: 'i16',
};

/** LiteRT: signed activations, 16 bits symmetric; softmax and logistic scales are fixed by the kernels. */
export const litertFormat: NumberFormat = {
  name: 'litert',
  activation: { 8: { dtype: 'i8', symmetric: false }, 16: { dtype: 'i16', symmetric: true } },
  cache: { 8: 'i8', 16: 'i16' },
  mixedProducts: false,
  fixed: {
    Softmax: { 8: unit('i8', 1 / 256, -128), 16: unit('i16', 1 / 32768) },
    Sigmoid: { 8: unit('i8', 1 / 256, -128), 16: unit('i16', 1 / 32768) },
    Tanh: { 8: unit('i8', 1 / 128), 16: unit('i16', 1 / 32768) },
    LpNormalization: { 8: unit('i8', 1 / 128), 16: unit('i16', 1 / 32768) },
  },
  table: 'row',
  // Of float activations only: no kernel multiplies integers with blocks (facts litert 1).
  blocks: ['f16'],
  brokenCounts: {},
  floatConstants: new Set(['LayerNormalization']),
  halfFloats: false,
  widths: {},
};

/** ONNX Runtime's QDQ: HTP's activation formats, embedding tables by row, every op at every width. */
export const onnxFormat: NumberFormat = {
  ...htpFormat,
  name: 'onnx',
  table: 'row',
  blocks: ['lpbq', 'f16'],
  brokenCounts: {},
  widths: {},
};
