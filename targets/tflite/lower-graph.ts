import { NpucError } from '../../compiler/errors.ts';
import { sameEncoding } from '../../compiler/ir/encoding.ts';
import type { Graph, Node } from '../../compiler/ir/graph.ts';
import { checkEncodings } from './check-encodings.ts';
import { lowerMatMul, lowerTranspose, weightOf } from './lower-matmul.ts';
import { lowerRmsNorm, refuseRmsNorm } from './lower-norm.ts';
import {
  lowerGather,
  lowerPad,
  lowerSlice,
  lowerTensorScatter,
  refuseGather,
  refusePad,
  refuseSlice,
  refuseTensorScatter,
} from './lower-state.ts';
import { type DecoderPortForm, Lowering, type ModelParts } from './lowering.ts';
import type { TfliteModel, TfliteSignature, TfliteSubgraph } from './model.ts';
import { BufferPool } from './subgraph-builder.ts';

/**
 * Lowers graphs of encoded values to one TFLite model of the ops that every NPU plugin takes (facts litert 5): a
 * subgraph and a signature of its name per graph, constants shared.
 * @param ports float ports get QUANTIZE and DEQUANTIZE at the boundary, quantized ports are the integers themselves
 * @throws TF201 naming every node that has no lowering, TF202 for types, XX001 for encodings that the kernels would
 *   misread
 */
export function lowerGraphs(graphs: readonly Graph[], ports: DecoderPortForm): TfliteModel {
  for (const graph of graphs) {
    refuseUnknown(graph);
    checkEncodings(graph);
  }
  const pool = new BufferPool();
  const bodies: TfliteSubgraph[] = [];
  // Bodies follow the graphs: signature n is subgraph n.
  const parts: ModelParts = { pool, addBody: (body) => graphs.length + bodies.push(body) - 1 };
  const lowered = graphs.map((graph) => lowerGraph(graph, ports, parts));
  return {
    version: 3,
    description: 'npuc',
    subgraphs: [...lowered.map(({ subgraph }) => subgraph), ...bodies],
    buffers: pool.buffers,
    signatures: lowered.map(({ signature }, subgraph) => ({ ...signature, subgraph })),
    metadata: [],
  };
}

function lowerGraph(
  graph: Graph,
  ports: DecoderPortForm,
  parts: ModelParts,
): { readonly subgraph: TfliteSubgraph; readonly signature: Omit<TfliteSignature, 'subgraph'> } {
  const lowering = new Lowering(graph, parts, ports);
  // A prefill graph without logits never looks at the last layer's past: converting that on the NPU would be for nothing.
  const inputs = graph.inputs.filter((value) => graph.isUsed(value)).map((value) => lowering.addInput(value, ports));
  for (const node of graph.nodes) if (!lowering.absorbed.has(node)) LOWERINGS[node.op]!.lower(node, lowering);
  const outputs = graph.outputs.map((value) => lowering.addOutput(value, ports));
  const subgraph = lowering.builder.graph;
  subgraph.inputs = inputs.map((port) => port.tensor);
  subgraph.outputs = outputs.map((port) => port.tensor);
  return { subgraph, signature: { key: graph.name, inputs, outputs } };
}

interface OpLowering {
  /** What about the node has no lowering; undefined when nothing. */
  readonly refuse?: (node: Node) => string | undefined;
  readonly lower: (node: Node, lowering: Lowering) => void;
}

/** Lists everything that cannot be lowered, grouped by reason. */
function refuseUnknown(graph: Graph): void {
  const reasons = new Map<string, string[]>();
  for (const node of graph.nodes) {
    const known = node.domain === '' ? LOWERINGS[node.op] : undefined;
    const reason = known ? known.refuse?.(node) : node.domain ? `${node.domain}.${node.op}` : node.op;
    if (reason) reasons.set(reason, [...(reasons.get(reason) ?? []), node.from[0] ?? node.name]);
  }
  if (reasons.size === 0) return;
  const list = [...reasons].map(([reason, nodes]) => `${reason} (${[...new Set(nodes)].join(', ')})`);
  throw new NpucError('TF201', {
    message: `TFLite has no form for ${list.join('; ')}`,
    where: [...reasons.values()][0]![0]!,
    hint: 'compile the model for another target, or replace these operators',
  });
}

const NO_ACTIVATION = { fusedActivationFunction: 0 } as const;
// The schema's default is true: an old power-of-two form of int16 arithmetic (facts litert 2).
const ADDITIVE = { ...NO_ACTIVATION, potScaleInt16: false } as const;

const LOWERINGS: Readonly<Record<string, OpLowering>> = {
  Add: {
    lower: (node, lowering) =>
      lowering.emit('ADD', node, operands(node, lowering), { options: { kind: 'AddOptions', ...ADDITIVE } }),
  },
  Sub: {
    lower: (node, lowering) =>
      lowering.emit('SUB', node, operands(node, lowering), { options: { kind: 'SubOptions', ...ADDITIVE } }),
  },
  Mul: {
    lower: (node, lowering) =>
      lowering.emit('MUL', node, operands(node, lowering), { options: { kind: 'MulOptions', ...NO_ACTIVATION } }),
  },
  Relu: { lower: (node, lowering) => lowering.emit('RELU', node, operands(node, lowering)) },
  Clip: {
    refuse: (node) => {
      const [from, to] = [node.input(0).encoding, node.output().encoding];
      return from && to && sameEncoding(from, to) ? undefined : 'Clip that saturation does not do';
    },
    // Integers of one encoding end at the bounds (calibration/precision.ts, clampedValues).
    lower: (node, { builder }) => builder.bind(node.output(), builder.tensorOf(node.input(0))),
  },
  Sigmoid: { lower: (node, lowering) => lowering.emit('LOGISTIC', node, operands(node, lowering)) },
  Softmax: {
    refuse: (node) =>
      isLastAxis(node, node.int('axis', -1)) ? undefined : `Softmax over axis ${node.int('axis', -1)}`,
    lower: lowerSoftmax,
  },
  Concat: {
    lower: (node, lowering) => {
      const axis = node.int('axis', 0);
      lowering.emit('CONCATENATION', node, operands(node, lowering), {
        options: { kind: 'ConcatenationOptions', axis, ...NO_ACTIVATION },
      });
    },
  },
  Reshape: { lower: lowerReshape },
  Transpose: { lower: lowerTranspose },
  Split: { lower: lowerSplit },
  Identity: { lower: lowerConversion },
  Gather: { refuse: refuseGather, lower: lowerGather },
  Pad: { refuse: refusePad, lower: lowerPad },
  Slice: { refuse: refuseSlice, lower: lowerSlice },
  TensorScatter: { refuse: refuseTensorScatter, lower: lowerTensorScatter },
  Cast: { refuse: refuseCast, lower: lowerCast },
  MatMul: { lower: lowerMatMul },
  RMSNormalization: { refuse: refuseRmsNorm, lower: lowerRmsNorm },
};

/** Tensors of all inputs. */
function operands(node: Node, { builder }: Lowering): number[] {
  return node.inputs.map((value) => builder.tensorOf(value!));
}

function isLastAxis(node: Node, axis: number): boolean {
  return axis === -1 || axis === node.input(0).dims.length - 1;
}

/**
 * LiteRT's 16-bit kernel looks exp up in a table that ends at exp(-10) and never gives 0: a thousand hidden slots of a cache
 * take 6 % of the sum, and what lies in them leaks into the result. On its CPU the floats in between are exact, and faster.
 */
function lowerSoftmax(node: Node, lowering: Lowering): void {
  const { builder } = lowering;
  const options = { options: { kind: 'SoftmaxOptions', beta: 1 } } as const;
  const [input, output] = [node.input(0), node.output()];
  if (lowering.form !== 'litert-lm' || input.encoding?.dtype !== 'i16' || !output.encoding) {
    lowering.emit('SOFTMAX', node, operands(node, lowering), options);
    return;
  }
  const floats = builder.addDequantize(builder.tensorOf(input), `${input.name}.floats`);
  const result = builder.addFloats(`${output.name}.floats`, output.dims);
  builder.addOperator('SOFTMAX', [floats], [result], options);
  builder.addQuantize(result, builder.tensorOf(output));
}

function lowerReshape(node: Node, lowering: Lowering): void {
  const { builder } = lowering;
  const shape = node.output().dims;
  const target = builder.addInts(`shape.${shape.join('x')}`, shape);
  lowering.emit('RESHAPE', node, [builder.tensorOf(node.input(0)), target], {
    options: { kind: 'ReshapeOptions', newShape: Int32Array.from(shape) },
  });
}

/** One SLICE per part: it is in the set of operators that every plugin takes, SPLIT is not (facts litert 5). */
function lowerSplit(node: Node, { builder }: Lowering): void {
  const input = node.input(0);
  const axis = (node.int('axis', 0) + input.dims.length) % input.dims.length;
  let start = 0;
  for (const output of node.outputs) {
    const size = output!.dims;
    const begin = size.map((_, i) => (i === axis ? start : 0));
    const inputs = [builder.tensorOf(input), builder.addInts('begin', begin), builder.addInts('size', size)];
    builder.addOperator('SLICE', inputs, [builder.tensorOf(output!)], { options: { kind: 'SliceOptions' } });
    start += size[axis]!;
  }
}

/** A change of number format; equal formats need no operator. */
function lowerConversion(node: Node, { builder }: Lowering): void {
  const [from, to] = [node.input(0), node.output()];
  const source = builder.tensorOf(from);
  if (from.encoding && to.encoding ? sameEncoding(from.encoding, to.encoding) : !from.encoding && !to.encoding) {
    builder.bind(to, source);
  } else if (to.encoding) builder.addQuantize(source, builder.tensorOf(to));
  else builder.bind(to, builder.addDequantize(source, to.name));
}

function refuseCast(node: Node): string | undefined {
  const [from, to] = [node.input(0), node.output()];
  if (isIndexCast(node)) return undefined;
  return from.data && from.dtype === 'f16' && to.dtype === 'f32' ? undefined : `Cast from ${from.dtype} to ${to.dtype}`;
}

/** Indices are 64 bits in ONNX; TFLite's kernels take what they are made from. */
function isIndexCast(node: Node): boolean {
  return node.input(0).dtype === 'i32' && node.output().dtype === 'i64';
}

/** Widens stored half floats; FULLY_CONNECTED does it for its own weights, which it wants in another layout. */
function lowerCast(cast: Node, { builder }: Lowering): void {
  const output = cast.output();
  if (isIndexCast(cast)) {
    builder.bind(output, builder.tensorOf(cast.input(0)));
    return;
  }
  const onlyWeights = [...output.uses].every(
    ({ node, index }) => node.op === 'MatMul' && index === 1 && weightOf(output),
  );
  if (!onlyWeights) builder.bind(output, builder.addDequantize(builder.tensorOf(cast.input(0)), output.name));
}
