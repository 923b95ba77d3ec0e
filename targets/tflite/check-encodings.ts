import { litertFormat } from '../../calibration/recipe.ts';
import { NpucError } from '../../compiler/errors.ts';
import { type Encoding, sameEncoding } from '../../compiler/ir/encoding.ts';
import type { Graph, Node, Value } from '../../compiler/ir/graph.ts';

/**
 * Ops whose kernels copy integers as they are: int16 CONCATENATION with unequal scales copies without a word and is wrong
 * (facts litert 2).
 */
const MOVEMENT: ReadonlySet<string> = new Set([
  'Concat',
  'Gather',
  'Pad',
  'Reshape',
  'Slice',
  'Split',
  'TensorScatter',
  'Transpose',
]);

/** Ops that may change the format, so that what they read and write need not agree. */
const CONVERSIONS: ReadonlySet<string> = new Set(['Cast', 'Identity']);

/**
 * Checks what the kernels take for granted and do not check themselves, so that a wrong plan is an error here and not a
 * wrong number on a phone: one integer type a node, equal scales around data movement, the fixed output scales of
 * SOFTMAX and LOGISTIC, symmetric int16 and symmetric weights.
 * @throws XX001: the plan is made by this tool, never by the user
 */
export function checkEncodings(graph: Graph): void {
  for (const node of graph.nodes) {
    // A lookup in a table with a scale per row gives floats, which are then quantized.
    if (CONVERSIONS.has(node.op) || (node.op === 'Gather' && node.input(0).encoding?.axis !== undefined)) continue;
    const values = [...node.inputs, ...node.outputs].filter((value) => value?.dtype === 'f32') as Value[];
    const weight = node.op === 'MatMul' ? node.inputs[1] : undefined;
    if (weight?.data) checkWeight(node, weight);
    // The bounds of a Clip are no operands: saturation does what they say.
    const operands = values.filter((value) => !value.data || (value !== weight && node.op !== 'Clip'));
    checkTypes(node, operands);
    if (MOVEMENT.has(node.op)) checkEqual(node, operands);
    checkFixed(node);
  }
}

function fail(node: Node, message: string): never {
  throw new NpucError('XX001', { message: `${node.op}: ${message}`, where: node.from[0] ?? node.name });
}

function checkTypes(node: Node, values: readonly Value[]): void {
  const types = new Set(values.map(({ encoding }) => encoding?.dtype ?? 'f32'));
  if (types.size > 1) {
    fail(node, `mixes ${values.map(({ name, encoding }) => `${name} ${encoding?.dtype ?? 'f32'}`).join(', ')}`);
  }
  for (const { name, encoding } of values) {
    if (encoding?.dtype === 'i16' && encoding.zeroPoint?.some((zero) => zero !== 0))
      fail(node, `${name} has a zero point`);
  }
}

function checkEqual(node: Node, values: readonly Value[]): void {
  const [first, ...others] = values;
  for (const other of others) {
    const equal = first?.encoding && other.encoding ? sameEncoding(first.encoding, other.encoding) : true;
    if (!equal) fail(node, `moves integers between the scales of ${first!.name} and ${other.name}`);
  }
}

function checkFixed(node: Node): void {
  const rules = litertFormat.fixed[node.op];
  const encoding = node.outputs[0]?.encoding;
  if (!rules || !encoding) return;
  const rule = encoding.dtype === 'i16' ? rules[16] : rules[8];
  if (!sameEncoding(encoding, rule))
    fail(node, `the kernel writes ${describe(rule)}, the plan says ${describe(encoding)}`);
}

function checkWeight(node: Node, { name, encoding }: Value): void {
  // Blocks are refused where they are written.
  if (!encoding || encoding.block !== undefined) return;
  if (encoding.zeroPoint?.some((zero) => zero !== 0)) fail(node, `the weight ${name} has a zero point`);
  if (encoding.axis !== undefined && encoding.axis !== 1)
    fail(node, `the weight ${name} has its scales on axis ${encoding.axis}`);
}

function describe({ dtype, scale, zeroPoint }: Encoding): string {
  return `${dtype} scale ${scale[0]} zero ${zeroPoint?.[0] ?? 0}`;
}
