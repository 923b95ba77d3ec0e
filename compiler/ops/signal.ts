import { addDims, divDims, subtractDims } from '../ir/dims.ts';
import type { DType } from '../ir/dtype.ts';
import type { Dim, Shape } from '../ir/graph.ts';
import { elementCount, type TensorData } from '../ir/tensor.ts';
import { castTarget } from './constant.ts';
import { encodeReals, need, newReals, readReals } from './elements.ts';
import { normalizeAxis, splitAtAxis } from './indexing.ts';
import { defineOp, type InferContext, type OpDefinition } from './op.ts';
import { inputDtype, nodeName, typeOrUnknown, unknownDim } from './shape-rules.ts';

/** Transforms and windows for audio. Complex numbers are pairs along the last axis. */

/** Discrete Fourier transform by its definition: the reference need not be fast. */
function transform(re: Float64Array, im: Float64Array, inverse: boolean): [Float64Array, Float64Array] {
  const n = re.length;
  const outRe = new Float64Array(n);
  const outIm = new Float64Array(n);
  const sign = inverse ? 1 : -1;
  const factor = inverse ? 1 / n : 1;
  // Angles repeat with period n, so one table of n sines keeps them exact.
  const cos = Float64Array.from({ length: n }, (_, k) => Math.cos((2 * Math.PI * k) / n));
  const sin = Float64Array.from({ length: n }, (_, k) => Math.sin((2 * Math.PI * k) / n));
  for (let k = 0; k < n; k++) {
    let sumRe = 0;
    let sumIm = 0;
    for (let t = 0; t < n; t++) {
      const angle = (k * t) % n;
      const s = sign * sin[angle]!;
      sumRe += re[t]! * cos[angle]! - im[t]! * s;
      sumIm += re[t]! * s + im[t]! * cos[angle]!;
    }
    outRe[k] = sumRe * factor;
    outIm[k] = sumIm * factor;
  }
  return [outRe, outIm];
}

/** The axis is an attribute (default 1) up to opset 19, input 2 (default -2) since. */
function dftAxis(
  rank: number,
  attribute: number | undefined,
  input: number | undefined,
  opset: number,
  where: string,
): number {
  return normalizeAxis(opset < 20 ? (attribute ?? 1) : (input ?? -2), rank, where);
}

const dft = defineOp({
  name: 'DFT',
  since: 17,
  quantization: 'independent',
  infer: (context) => {
    const { node } = context;
    const shape = context.shape(0);
    const named = node.inputs[2] ? context.constant(2)?.toNumbers()[0] : undefined;
    if (!shape || (node.inputs[2] && named === undefined)) return [typeOrUnknown(inputDtype(context, 0), undefined)];
    const axis = dftAxis(shape.length, node.int('axis'), named, context.opset, nodeName(node));
    const length = node.inputs[1] ? (context.content(1)?.[0] ?? unknownDim(node, 0, axis)) : shape[axis]!;
    const out = shape.map((dim, at): Dim => (at === axis ? bins(length, node.int('onesided', 0) === 1) : dim));
    out[out.length - 1] = 2;
    return [typeOrUnknown(inputDtype(context, 0), out)];
  },
  evaluate: (inputs, { node, opset }) => {
    const where = nodeName(node);
    const x = need(inputs, 0, where);
    const named = inputs[2] && readReals(inputs[2])[0];
    const axis = dftAxis(x.shape.length, node.int('axis'), named, opset, where);
    const length = inputs[1] ? readReals(inputs[1])[0]! : x.shape[axis]!;
    return [transformAxis(x, axis, length, node.int('inverse', 0) === 1, node.int('onesided', 0) === 1)];
  },
});

function bins(length: Dim, onesided: boolean): Dim {
  return onesided ? addDims(divDims(length, 2), 1) : length;
}

/** Transforms an axis of [..., 1 or 2] to [..., 2], cut or padded with zeros to `length`. */
function transformAxis(x: TensorData, axis: number, length: number, inverse: boolean, onesided: boolean): TensorData {
  const parts = x.shape[x.shape.length - 1]!;
  const source = readReals(x);
  const logical = x.shape.slice(0, -1);
  const { outer, size, inner } = splitAtAxis(logical, axis);
  const count = bins(length, onesided) as number;
  const out = newReals(x.dtype, outer * count * inner * 2);
  for (let o = 0; o < outer; o++) {
    for (let i = 0; i < inner; i++) {
      const re = new Float64Array(length);
      const im = new Float64Array(length);
      for (let k = 0; k < Math.min(size, length); k++) {
        const at = ((o * size + k) * inner + i) * parts;
        re[k] = source[at]!;
        if (parts === 2) im[k] = source[at + 1]!;
      }
      const [outRe, outIm] = transform(re, im, inverse);
      for (let k = 0; k < count; k++) {
        const to = ((o * count + k) * inner + i) * 2;
        out[to] = outRe[k]!;
        out[to + 1] = outIm[k]!;
      }
    }
  }
  const shape = [...logical.map((dim, at) => (at === axis ? count : dim)), 2];
  return encodeReals(x.dtype, shape, out);
}

/** signal [B, L, 1 or 2] in frames of frame_length every frame_step, each windowed and transformed: [B, frames, bins, 2]. */
const stft = defineOp({
  name: 'STFT',
  since: 17,
  quantization: 'independent',
  infer: (context) => [typeOrUnknown(inputDtype(context, 0), stftShape(context))],
  evaluate: (inputs, { node }) => {
    const x = need(inputs, 0, nodeName(node));
    const step = readReals(need(inputs, 1, nodeName(node)))[0]!;
    const window = inputs[2] && readReals(inputs[2]);
    const length = inputs[3] ? readReals(inputs[3])[0]! : (window?.length ?? x.shape[1]!);
    const [batch, samples] = x.shape as [number, number];
    const parts = x.shape[2] ?? 1;
    const frames = 1 + Math.floor((samples - length) / step);
    const source = readReals(x);
    const framed = new Float64Array(batch * frames * length * parts);
    let to = 0;
    for (let b = 0; b < batch; b++)
      for (let f = 0; f < frames; f++)
        for (let t = 0; t < length; t++)
          for (let p = 0; p < parts; p++)
            framed[to++] = source[(b * samples + f * step + t) * parts + p]! * (window ? window[t]! : 1);
    const blocks: TensorData = { dtype: 'f64', shape: [batch, frames, length, parts], data: framed };
    const result = transformAxis(blocks, 2, length, false, node.int('onesided', 1) === 1);
    return [
      encodeReals(
        x.dtype,
        result.shape,
        x.dtype === 'f64' ? (result.data as Float64Array) : Array.from(result.data as Float64Array),
      ),
    ];
  },
});

function stftShape(context: InferContext): Shape | undefined {
  const { node } = context;
  const x = context.shape(0);
  if (!x) return undefined;
  const step = context.content(1)?.[0];
  const length: Dim | undefined = node.inputs[3]
    ? context.content(3)?.[0]
    : node.inputs[2]
      ? context.shape(2)?.[0]
      : x[1];
  const frames =
    step === undefined || length === undefined
      ? unknownDim(node, 0, 1)
      : addDims(divDims(subtractDims(x[1]!, length), step), 1);
  return [
    x[0]!,
    frames,
    length === undefined ? unknownDim(node, 0, 2) : bins(length, node.int('onesided', 1) === 1),
    2,
  ];
}

/** Cosine windows: sum of coefficients[k] * cos(2 pi k n / N), N the size (periodic) or the size - 1 (symmetric). */
function cosineWindow(name: string, coefficients: readonly number[]): OpDefinition {
  return defineOp({
    name,
    since: 17,
    quantization: 'never',
    infer: (context) => [
      typeOrUnknown(castTarget(context.node, 'output_datatype') ?? 'f32', [
        context.content(0)?.[0] ?? unknownDim(context.node, 0, 0),
      ]),
    ],
    evaluate: (inputs, { node }) => {
      const size = readReals(need(inputs, 0, nodeName(node)))[0]!;
      const period = node.int('periodic', 1) === 1 ? size : size - 1;
      const dtype: DType = castTarget(node, 'output_datatype') ?? 'f32';
      const values = Float64Array.from({ length: size }, (_, n) =>
        coefficients.reduce((sum, factor, k) => sum + factor * Math.cos((2 * Math.PI * k * n) / period), 0),
      );
      return [encodeReals(dtype, [size], dtype === 'f64' ? values : Array.from(values))];
    },
  });
}

/** Triangular filters, evenly spaced in mel, over the bins of a spectrum: [bins, mels]. */
const melWeightMatrix = defineOp({
  name: 'MelWeightMatrix',
  since: 17,
  quantization: 'never',
  infer: (context) => {
    const mels = context.content(0)?.[0] ?? unknownDim(context.node, 0, 1);
    const length = context.content(1)?.[0];
    const rows = length === undefined ? unknownDim(context.node, 0, 0) : addDims(divDims(length, 2), 1);
    return [typeOrUnknown(castTarget(context.node, 'output_datatype') ?? 'f32', [rows, mels])];
  },
  evaluate: (inputs, { node }) => {
    const [mels, length, rate, low, high] = [0, 1, 2, 3, 4].map(
      (index) => readReals(need(inputs, index, nodeName(node)))[0]!,
    ) as [number, number, number, number, number];
    const rows = Math.floor(length / 2) + 1;
    const toMel = (hertz: number): number => 2595 * Math.log10(1 + hertz / 700);
    const step = (toMel(high) - toMel(low)) / (mels + 2);
    const edges = Array.from({ length: mels + 2 }, (_, k) => {
      const hertz = 700 * (10 ** ((k * step + toMel(low)) / 2595) - 1);
      return Math.floor(((length + 1) * hertz) / rate);
    });
    const out = new Float64Array(elementCount([rows, mels]));
    for (let m = 0; m < mels; m++) {
      const [left, centre, right] = [edges[m]!, edges[m + 1]!, edges[m + 2]!];
      if (centre === left) out[centre * mels + m] = 1;
      for (let row = left; row <= centre && centre > left; row++) out[row * mels + m] = (row - left) / (centre - left);
      for (let row = centre; row < right; row++) out[row * mels + m] = (right - row) / (right - centre);
    }
    const dtype = castTarget(node, 'output_datatype') ?? 'f32';
    return [encodeReals(dtype, [rows, mels], dtype === 'f64' ? out : Array.from(out))];
  },
});

export const SIGNAL_OPS: readonly OpDefinition[] = [
  dft,
  stft,
  cosineWindow('HannWindow', [0.5, -0.5]),
  // 25/46, the coefficient of the ONNX specification, not 0.54.
  cosineWindow('HammingWindow', [25 / 46, -21 / 46]),
  cosineWindow('BlackmanWindow', [0.42, -0.5, 0.08]),
  melWeightMatrix,
];
