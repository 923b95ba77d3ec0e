import { basename } from 'node:path';
import { NpucError } from '../compiler/errors.ts';
import {
  affineEncoding,
  type Encoding,
  encodingBits,
  sameEncoding,
  symmetricEncoding,
} from '../compiler/ir/encoding.ts';
import type { Graph } from '../compiler/ir/graph.ts';
import type { Plan } from './plan.ts';
import type { GivenEncoding, GivenEncodings } from './read-encodings.ts';
import { type NumberFormat, type Override, overrideOf, type Recipe, type WeightForm } from './recipe.ts';

/** The widths that a file asks for, as overrides on the nodes that make the values. */
export function widthsOf(given: GivenEncodings, graph: Graph, recipe: Recipe): Override[] {
  return [...given.activations].flatMap(([name, { bits }]) => {
    if ((bits !== 8 && bits !== 16) || bits === recipe.activation || !graph.find(name)?.producer) return [];
    return [{ ...overrideOf(name), activation: bits, why: `${basename(given.path)} has ${bits} bits` }];
  });
}

/**
 * Puts given encodings into the place of calibrated ones in a plan. Values that ops only move have one encoding: what is given
 * for one of them holds for all, and of several that differ the widest. Where the target needs another width or a symmetric
 * form, the given range is kept. Biases follow their weights.
 * @param known names of the user's own model: those that its simplification removed are no error
 * @throws QT131 naming what is in neither model, and weights that the target cannot represent
 */
export function adoptEncodings(
  given: GivenEncodings,
  graph: Graph,
  plan: Plan,
  format: NumberFormat,
  known: ReadonlySet<string>,
): Plan {
  checkNames(given, graph, known);
  const file = basename(given.path);
  const remarks: string[] = [];
  const adopted = adoptActivations(given, graph, plan, format, remarks);
  const weights = new Map(plan.weights);
  let tables = 0;
  for (const [name, entry] of given.params) {
    const planned = plan.weights.get(name);
    if (planned) {
      const encoding = weightEncoding(given, name, entry, graph, planned.axis, format);
      weights.set(name, { ...planned, form: formOf(encoding), why: `given by ${file}` });
    }
    if (plan.tables.has(name)) tables++;
  }
  const count = [...given.params.keys()].filter((name) => plan.weights.has(name)).length + tables;
  const all = plan.weights.size + plan.tables.size;
  remarks.unshift(
    `${file} gives ${adopted.count} of ${plan.activations.size} activations and ${count} of ${all} weights; the others are calibrated`,
  );
  if (given.floats.length > 0)
    remarks.push(`${file} leaves ${given.floats.length} values in float; here they are calibrated`);
  return { ...plan, activations: adopted.activations, weights, remarks: [...plan.remarks, ...remarks] };
}

/**
 * Puts given encodings of weights into the place of searched ones.
 * @param weights as encodeWeights gives them for the adopted plan; changed in place
 */
export function adoptWeights(
  given: GivenEncodings,
  graph: Graph,
  plan: Plan,
  format: NumberFormat,
  weights: Map<string, Encoding>,
): void {
  for (const [name, entry] of given.params) {
    const now = weights.get(name);
    if (now) weights.set(name, weightEncoding(given, name, entry, graph, plan.weights.get(name)?.axis ?? 0, format));
  }
}

function misfit(given: GivenEncodings, message: string): NpucError {
  return new NpucError('QT131', {
    message,
    where: given.path,
    hint: 'the encodings must be of this model, and in a form that the target has',
  });
}

/** Ends the name of a value that is another one in another format (passes/insert-conversions.ts). */
const CONVERSION = /(\.(wide|as8|as16|right))+$/;

function checkNames(given: GivenEncodings, graph: Graph, known: ReadonlySet<string>): void {
  const names = [...given.activations.keys(), ...given.params.keys()];
  const unknown = names.filter((name) => !known.has(name.replace(CONVERSION, '')) && !graph.find(name));
  if (unknown.length === 0) return;
  const shown = unknown.slice(0, 5).join(', ');
  throw misfit(
    given,
    unknown.length === names.length
      ? `it is of another model: none of its ${names.length} names is in this one, such as ${shown}`
      : `${unknown.length} of its ${names.length} names are not in the model: ${shown}${unknown.length > 5 ? ', ...' : ''}`,
  );
}

function adoptActivations(
  given: GivenEncodings,
  graph: Graph,
  plan: Plan,
  format: NumberFormat,
  remarks: string[],
): { activations: Plan['activations']; count: number } {
  const fixed = new Set(Object.values(format.fixed).flatMap((widths) => Object.values(widths)));
  const ports = [...graph.states.values()].flatMap(({ input, output }) => [input, output]);
  const caches = new Set(ports.map(({ name }) => name));
  // Values that share an encoding share the object.
  const groups = new Map<Encoding, string[]>();
  for (const [name, { encoding }] of plan.activations) groups.set(encoding, [...(groups.get(encoding) ?? []), name]);
  const activations = new Map(plan.activations);
  let count = 0;
  let ranged = 0;
  for (const [ours, names] of groups) {
    const entries = names.flatMap((name) => given.activations.get(name) ?? given.params.get(name) ?? []);
    if (entries.length === 0) continue;
    if (fixed.has(ours)) {
      if (entries.some((entry) => !sameEncoding(activationEncoding(entry, ours, false).encoding, ours)))
        remarks.push(`${names[0]}: the target's kernels fix its encoding, the given one is not used`);
      continue;
    }
    const symmetric = ours.dtype === 'i16' || names.some((name) => caches.has(name));
    const found = entries.map((entry) => activationEncoding(entry, ours, symmetric));
    const widest = found.reduce((a, b) => (span(b.encoding) > span(a.encoding) ? b : a));
    if (found.some(({ encoding }) => !sameEncoding(encoding, widest.encoding)))
      remarks.push(`${names[0]}: values that are only moved have one encoding, the widest given one`);
    if (!widest.exact) ranged++;
    for (const name of names)
      activations.set(name, { encoding: widest.encoding, why: `given by ${basename(given.path)}` });
    count += names.length;
  }
  if (ranged > 0)
    remarks.push(`${ranged} given encodings have another width or form than the target's: their range is kept`);
  return { activations, count };
}

const span = ({ dtype, scale }: Encoding): number => scale[0]! * 2 ** encodingBits(dtype);

/** A given encoding in our type: the very same where the width and the zero fit, else one of the same range. */
function activationEncoding(
  { bits, scale, offset }: GivenEncoding,
  ours: Encoding,
  symmetric: boolean,
): { encoding: Encoding; exact: boolean } {
  const [step, first] = [scale[0]!, offset[0]!];
  const middle = 2 ** (bits - 1);
  const signed = ours.dtype.startsWith('i');
  if (bits === encodingBits(ours.dtype) && (!symmetric || first === -middle)) {
    const zero = signed ? -(first + middle) : -first;
    // A zero of -0 would be written as another one.
    return {
      encoding: { dtype: ours.dtype, scale: Float32Array.of(step), zeroPoint: Int32Array.of(zero || 0) },
      exact: true,
    };
  }
  const [min, max] = [step * first, step * (2 ** bits - 1 + first)];
  const dtype = ours.dtype as 'u8' | 'u16' | 'i8' | 'i16';
  const encoding = symmetric ? symmetricEncoding(dtype, Math.max(-min, max)) : affineEncoding(dtype, min, max);
  return { encoding, exact: false };
}

/** @throws QT131 for a form that an NPU does not have */
function weightEncoding(
  file: GivenEncodings,
  name: string,
  given: GivenEncoding,
  graph: Graph,
  axis: number,
  format: NumberFormat,
): Encoding {
  const refuse = (message: string): never => {
    throw misfit(file, `${name}: ${message}`);
  };
  const value = graph.find(name)!;
  const { dims } = value;
  const channels = dims[axis]!;
  const { blocks, scale } = given;
  const bits = blocks?.bits ?? given.bits;
  if (bits !== 4 && bits !== 8) return refuse(`weights of ${bits} bits`);
  if (given.offset.some((value) => value !== -(2 ** (given.bits - 1))))
    refuse('weights must be symmetric: an offset of the middle');
  if (scale.length !== 1 && scale.length !== channels) refuse(`${scale.length} scales for ${channels} output channels`);
  const dtype = bits === 4 ? 'i4' : 'i8';
  if (!blocks) {
    // One 4-bit scale for a whole weight is computed wrongly by HTP (facts qnn-htp 2): the same one for each channel is not.
    const each = scale.length === channels ? scale : Array.from({ length: channels }, () => scale[0]!);
    return { dtype, scale: Float32Array.from(each), axis };
  }
  if ([...value.uses].some(({ node }) => node.op !== 'MatMul')) refuse('blocks of weights are for MatMul only');
  if (!format.blocks.includes('lpbq') || dims.length !== 2 || bits !== 4) refuse('the target has no such blocks');
  const inputs = dims[1 - axis]!;
  const count = inputs / blocks.size;
  if (scale.length !== channels || blocks.scale.length !== channels * count)
    refuse(`${blocks.scale.length} block scales of ${blocks.size} for ${channels} channels of ${inputs}`);
  if (![16, 32, 64].includes(blocks.size)) refuse(`blocks of ${blocks.size} are not 16, 32 or 64`);
  // Two halves of one scale are the same numbers, where the target's runtime cannot take so many blocks.
  const halves = format.brokenCounts[blocks.size as 64]?.has(count) ? 2 : 1;
  const block = blocks.size / halves;
  const perChannel = count * halves;
  const scales = blocks.scale.flatMap((each) => Array.from({ length: halves }, () => each));
  const blockScale = Uint8Array.from(scales);
  // The file has the blocks of a channel together; the IR follows the weight's own axes.
  if (axis > 1 - axis) {
    for (let channel = 0; channel < channels; channel++)
      for (let b = 0; b < perChannel; b++) blockScale[b * channels + channel] = scales[channel * perChannel + b]!;
  }
  return { dtype, scale: Float32Array.from(scale), axis: 1 - axis, block, channelAxis: axis, blockScale };
}

function formOf({ dtype, block }: Encoding): WeightForm {
  return { bits: dtype === 'i4' ? 4 : 8, block: (block ?? 0) as WeightForm['block'] };
}
