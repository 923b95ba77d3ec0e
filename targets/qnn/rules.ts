import type { Encoding } from '../../compiler/ir/encoding.ts';
import { encodingForm } from '../../compiler/ir/encoding.ts';
import type { Node, Value } from '../../compiler/ir/graph.ts';
import { knownDType, knownRank } from '../../compiler/value-facts.ts';
import { findMasks } from '../../passes/clamp-mask.ts';
import { isRepeatedNearest } from '../../passes/decompose-nearest-resize.ts';
import type { HtpArch } from '../socs.ts';

/** How a node's numbers are computed: integers of a width, or half floats. */
export type NodeWidth = 'u8' | 'u16' | 'fp16';

/** Refused: the compiler says so. Wrong: it is taken and what comes out is not the op. Weak: right, but far from its width. */
export type Verdict = 'refused' | 'wrong' | 'weak';

/** What makes a finding go away. */
export type Mend =
  /** A rewrite: compile does it by itself, `npuc inspect --fix` writes it out. */
  | { readonly kind: 'pass'; readonly pass: string }
  /** A choice of number formats that quantization makes by itself. */
  | { readonly kind: 'quantization'; readonly what: string }
  /** A choice of the user's. */
  | { readonly kind: 'flag'; readonly flag: string };

/** What a rule may ask about a node. */
export interface NodeFacts {
  readonly width: NodeWidth;
  readonly opset: number;
  readonly arch: HtpArch;
  /** The integers of a value: its encoding, or what the scheme will give it; undefined for what stays float. */
  encodingOf(value: Value | undefined): Encoding | undefined;
  /** Whether the graph has encodings of its own; otherwise widths are what a scheme will make of it. */
  readonly isQuantized: boolean;
}

/** One thing about HTP, as data. */
export interface HtpRule {
  /** Stable: HTP and three digits. */
  readonly code: string;
  readonly ops: readonly string[];
  readonly verdict: Verdict;
  readonly reason: string;
  /** Widths at which it holds; all when absent. */
  readonly widths?: readonly NodeWidth[];
  /** Architectures on which it holds; all when absent. */
  readonly archs?: (arch: HtpArch) => boolean;
  readonly matches?: (node: Node, facts: NodeFacts) => boolean;
  readonly mend?: Mend;
  /** What was seen: dB against ONNX Runtime on the same model, or the vendor's words. */
  readonly measured: string;
}

/** What the measurements were made with; `npm run support` writes all of them into SUPPORT.md. */
export const MEASURED_ON = 'the simulator of QAIRT 2.51 (onnxruntime-qnn 2.7.0), SM8650 (v75) unless said';

const pass = (name: string): Mend => ({ kind: 'pass', pass: name });
const quantization = (what: string): Mend => ({ kind: 'quantization', what });

/**
 * Ops of the ONNX domain that HTP takes in some form: nearly all have a row in SUPPORT.md. What is not here has no
 * implementation. Constant, Identity and shape arithmetic never reach it.
 */
export const TAKEN_OPS: ReadonlySet<string> = new Set(
  `Abs Add And ArgMax ArgMin Asin Atan Attention AveragePool BatchNormalization Cast CastLike Ceil Clip Concat Constant Conv
  ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div Einsum Elu Equal Exp Expand Flatten Floor Gather GatherElements
  GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization GRU HardSigmoid
  HardSwish Identity InstanceNormalization IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization
  LpPool MatMul Max MaxPool Mean Min Mod Mul Neg Not OneHot Or PRelu Pad Pow QuantizeLinear RMSNormalization Reciprocal ReduceL2
  ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Resize RoiAlign RotaryEmbedding Round ScatterElements ScatterND Selu Sigmoid
  Sign SimplifiedLayerNormalization Sin Slice Softmax Softplus SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK Transpose
  Unsqueeze Where Xor`.split(/\s+/),
);

/** Ops of the domain com.microsoft that it takes: 65 to 70 dB in half floats. */
export const TAKEN_CONTRIB_OPS: ReadonlySet<string> = new Set([
  'DequantizeLinear',
  'FusedMatMul',
  'Gelu',
  'MatMulNBits',
  'QuantizeLinear',
  'QuickGelu',
]);

/** The rewrite that gets along without an op that HTP does not have. */
export const REPLACED_OPS: Readonly<Record<string, string>> = {
  Celu: 'decompose-activations',
  Cosh: 'decompose-activations',
  Erf: 'decompose-activations',
  Mish: 'decompose-activations',
  Sinh: 'decompose-activations',
  Softsign: 'decompose-activations',
  MeanVarianceNormalization: 'decompose-mean-variance',
  ReduceL1: 'decompose-reductions',
  ReduceLogSum: 'decompose-reductions',
  ReduceSumSquare: 'decompose-reductions',
  Trilu: 'decompose-trilu',
};

const isWeight = (value: Value | undefined): boolean => value?.data !== undefined;

export const HTP_RULES: readonly HtpRule[] = [
  {
    code: 'HTP010',
    ops: ['Swish'],
    verdict: 'wrong',
    widths: ['u8', 'u16'],
    reason: 'the activation is computed from other integers',
    mend: pass('decompose-activations'),
    measured: '1.9 dB',
  },
  {
    code: 'HTP011',
    ops: ['Pad'],
    verdict: 'wrong',
    matches: (node) => node.string('mode', 'constant') === 'edge',
    reason: 'edges are not repeated',
    mend: pass('decompose-edge-pad'),
    measured: '6 dB where it reads an input of the graph',
  },
  {
    code: 'HTP012',
    ops: ['Resize'],
    verdict: 'wrong',
    matches: (node, { opset }) => isRepeatedNearest(node, opset) === false,
    reason: 'other nearest neighbours are taken where elements are not repeated a whole number of times',
    mend: pass('decompose-nearest-resize'),
    measured: '-2.9 dB halved, -1.5 dB rounded up',
  },
  {
    code: 'HTP013',
    ops: ['Log'],
    verdict: 'wrong',
    widths: ['u16'],
    reason: 'logarithms at 16 bits are wrong',
    mend: quantization('8 bits'),
    measured: '-7.2 dB',
  },
  {
    code: 'HTP014',
    ops: ['CumSum'],
    verdict: 'wrong',
    widths: ['u8'],
    reason: 'running sums at 8 bits are wrong',
    mend: quantization('16 bits'),
    measured: '38 dB over 64 elements, 0 dB over 1,024',
  },
  {
    code: 'HTP015',
    ops: ['Softplus'],
    verdict: 'weak',
    widths: ['u16'],
    reason: 'computed no better than at 8 bits',
    mend: quantization('8 bits'),
    measured: '39 dB',
  },
  {
    code: 'HTP016',
    ops: ['BatchNormalization'],
    verdict: 'refused',
    widths: ['u16'],
    reason: 'QNN Batchnorm unsupported datatype on HTP',
    mend: pass('decompose-batch-norm'),
    measured: 'refused; at 8 bits 0.5 dB behind a Relu',
  },
  {
    code: 'HTP017',
    ops: ['LayerNormalization'],
    verdict: 'refused',
    widths: ['u16'],
    matches: (node) => node.inputs[2] === undefined && isLastAxis(node),
    reason: 'a norm without a bias is not taken at 16 bits',
    mend: pass('add-norm-bias'),
    measured: 'refused (QNN error 3110)',
  },
  {
    code: 'HTP018',
    ops: ['LayerNormalization'],
    verdict: 'refused',
    matches: (node) => !isLastAxis(node),
    reason: 'it normalizes along the last axis only',
    mend: pass('flatten-layer-norm'),
    measured: 'refused',
  },
  {
    code: 'HTP019',
    ops: ['LpNormalization'],
    verdict: 'refused',
    matches: (node) => node.int('p', 2) !== 2,
    reason: 'only p = 2 is supported',
    mend: pass('decompose-l1-norm'),
    measured: 'refused',
  },
  {
    code: 'HTP020',
    ops: ['LRN'],
    verdict: 'refused',
    widths: ['u16'],
    reason: 'not taken at 16 bits',
    mend: quantization('8 bits'),
    measured: 'refused (QNN error 3110)',
  },
  {
    code: 'HTP021',
    ops: ['PRelu'],
    verdict: 'refused',
    widths: ['u16'],
    matches: (node) => node.inputs[1]?.data?.size !== 1,
    reason: 'slopes per channel are not taken at 16 bits',
    mend: quantization('8 bits'),
    measured: 'could not create op',
  },
  {
    code: 'HTP022',
    ops: ['Einsum'],
    verdict: 'refused',
    reason: 'few equations are supported, and those at 8 bits',
    mend: pass('decompose-einsum'),
    measured: 'bhid,bhjd->bhij refused at 16 bits (QNN error 3110), bij,jk->bik at any',
  },
  {
    code: 'HTP023',
    ops: ['CumSum'],
    verdict: 'refused',
    matches: (node) => node.int('exclusive', 0) === 1 || node.int('reverse', 0) === 1,
    reason: 'only inclusive sums from the beginning are supported',
    mend: pass('decompose-cumulative-sum'),
    measured: 'refused',
  },
  {
    code: 'HTP024',
    ops: ['Mod'],
    verdict: 'refused',
    matches: (node) => node.int('fmod', 0) === 1,
    reason: 'only fmod = 0 is supported',
    measured: 'refused',
  },
  {
    code: 'HTP025',
    ops: ['ReduceLogSumExp'],
    verdict: 'refused',
    widths: ['u8', 'u16'],
    reason: 'it does not support quantized input',
    mend: pass('decompose-reductions'),
    measured: 'refused',
  },
  {
    code: 'HTP026',
    ops: ['Gemm'],
    verdict: 'refused',
    matches: (node) => node.float('alpha', 1) !== 1 || node.float('beta', 1) !== 1,
    reason: 'only alpha = 1 and beta = 1 are supported',
    mend: pass('decompose-general-gemm'),
    measured: 'refused',
  },
  {
    code: 'HTP027',
    ops: ['Attention'],
    verdict: 'wrong',
    widths: ['u8', 'u16'],
    matches: (node) => node.inputs[4] !== undefined,
    reason: 'attention with a past compiles, and its run fails',
    measured: 'invalid tensor when run',
  },
  {
    code: 'HTP028',
    ops: ['Pad'],
    verdict: 'refused',
    matches: (node) => node.string('mode', 'constant') === 'wrap',
    reason: 'this mode is not supported',
    measured: 'refused',
  },
  {
    code: 'HTP029',
    ops: ['Asin'],
    verdict: 'refused',
    widths: ['fp16'],
    reason: 'not taken in half floats',
    measured: 'refused (QNN error 3110)',
  },
  {
    code: 'HTP037',
    ops: ['Asin'],
    verdict: 'weak',
    widths: ['u8'],
    reason: 'weak at 8 bits',
    mend: { kind: 'flag', flag: '--scheme w8a16' },
    measured: '23.5 dB, 82 at 16 bits',
  },
  {
    code: 'HTP030',
    ops: ['MatMul'],
    verdict: 'wrong',
    widths: ['u16'],
    matches: (node, { isQuantized, encodingOf }) =>
      isQuantized &&
      !isWeight(node.inputs[1]) &&
      encodingOf(node.inputs[0])?.dtype === 'u16' &&
      encodingOf(node.inputs[1])?.dtype === 'u16',
    reason: 'of two unsigned 16-bit operands the right one is rounded to 8 bits, without a word',
    mend: pass('repair-encodings'),
    measured: '48 dB, 75 with a signed symmetric right operand',
  },
  {
    code: 'HTP031',
    ops: ['MatMul'],
    verdict: 'refused',
    matches: (node, { isQuantized, encodingOf }) =>
      isQuantized &&
      !isWeight(node.inputs[1]) &&
      encodingOf(node.inputs[0])?.dtype === 'u8' &&
      /16/.test(encodingOf(node.inputs[1])?.dtype ?? '') &&
      encodingOf(node.outputs[0])?.dtype === 'u8',
    reason: 'a product of 8 with 16 bits has no 8-bit output in this order',
    measured: 'refused (QNN error 3110)',
  },
  {
    code: 'HTP032',
    ops: ['MatMul'],
    verdict: 'refused',
    archs: (arch) => arch < 73,
    matches: (node, { isQuantized, encodingOf }) =>
      isQuantized &&
      !isWeight(node.inputs[1]) &&
      /16/.test(encodingOf(node.inputs[0])?.dtype ?? '') &&
      encodingOf(node.inputs[1])?.dtype === 'i16',
    reason: 'there is no product of two 16-bit operands before v73',
    measured: 'refused on v68 and v69, 80 dB on v73 to v81',
  },
  {
    code: 'HTP033',
    // As files have it: an encoding's zero points are written out always.
    ops: ['DequantizeLinear'],
    verdict: 'wrong',
    matches: (node) => /^[iu]4$/.test(knownDType(node.inputs[0]) ?? '') && node.inputs[2] === undefined,
    reason: '4-bit weights without an input of zero points are computed wrongly',
    mend: pass('fold-qdq'),
    measured: '-8.1 dB with one scale, -7.0 dB per channel; 67 dB with zero points',
  },
  {
    code: 'HTP034',
    ops: ['Gemm'],
    verdict: 'wrong',
    matches: (node, { encodingOf }) => {
      const encoding = encodingOf(node.inputs[1]);
      return encoding !== undefined && encodingForm(encoding) === 'lpbq';
    },
    reason: 'two-level weights in Gemm are refused without a bias and computed wrongly with one',
    mend: pass('decompose-gemm'),
    measured: '-5.8 dB with a float bias, refused otherwise; 86 to 90 dB in MatMul',
  },
  {
    code: 'HTP035',
    ops: ['MatMul', 'Gemm', 'Conv'],
    verdict: 'weak',
    matches: (node, { encodingOf }) => {
      const encoding = encodingOf(node.inputs[1]);
      return encoding !== undefined && encodingForm(encoding) === 'block';
    },
    reason: 'float block scales are multiplied in half floats, and refused with 8-bit activations',
    mend: { kind: 'flag', flag: '--scheme w4a16 from the float model: its blocks have integer scales' },
    measured: '68 dB, four times as slow in the simulator',
  },
  {
    code: 'HTP036',
    ops: ['Add', 'Where'],
    verdict: 'weak',
    widths: ['u8', 'u16'],
    matches: (node) => node.graph !== undefined && findMasks(node.graph, node).length > 0,
    reason: 'a mask this low leaves no steps for what is not masked',
    mend: pass('clamp-mask'),
    measured: 'softmax at 16 bits, against float: 11 dB for -65504',
  },
];

function isLastAxis(node: Node): boolean {
  const axis = node.int('axis', -1);
  const rank = knownRank(node.inputs[0]);
  return axis === -1 || (rank !== undefined && axis === rank - 1);
}
