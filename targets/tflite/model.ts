import { type ErrorCode, NpucError } from '../../compiler/errors.ts';
import type { BufferBytes, TableValue, UnionValue } from './schema.ts';
import { BuiltinOperator, operatorName, type TensorTypeCode } from './schema-enums.ts';

/** A TFLite model as plain objects. Operator codes are not in it: each operator names its own, the writer shares them. */
export interface TfliteModel {
  /** Schema version; 3 is the only one in use. */
  version: number;
  description?: string;
  subgraphs: TfliteSubgraph[];
  /**
   * Constant data by index; undefined is no data, which is not the same as 0 bytes: a tensor with 0 bytes is a constant.
   * Buffer 0 is undefined: tensors that are computed point at it.
   */
  buffers: (BufferBytes | undefined)[];
  signatures: TfliteSignature[];
  metadata: TfliteMetadata[];
  /** Buffer indices of a metadata form older than `metadata`. */
  metadataBuffer?: ArrayLike<number>;
  externalBufferGroups?: readonly TableValue<'ExternalBufferGroup'>[];
  externalBuffers?: readonly TableValue<'ExternalBuffer'>[];
}

export interface TfliteSubgraph {
  name?: string;
  tensors: TfliteTensor[];
  /** Tensor indices. */
  inputs: readonly number[];
  outputs: readonly number[];
  operators: TfliteOperator[];
  debugMetadataIndex?: number;
}

export interface TfliteTensor {
  /** Unique over the whole file (litert-quantizer demands it), subgraphs included. */
  name: string;
  type: TensorTypeCode;
  shape: readonly number[];
  /** The shape with -1 for dynamic dimensions, where it has any. */
  shapeSignature?: readonly number[];
  /** Index in `TfliteModel.buffers`; 0 is no constant data. Two tensors with one index share their weights. */
  buffer: number;
  /** False only for a tensor of unknown rank; an empty shape is then no scalar. Written as true where not given. */
  hasRank?: boolean;
  isVariable?: boolean;
  quantization?: TfliteQuantization;
  sparsity?: TableValue<'SparsityParameters'>;
  variantTensors?: readonly TableValue<'VariantSubType'>[];
  externalBuffer?: number;
}

/** real = scale * (integer - zeroPoint); one scale a tensor, or one a slice along `quantizedDimension`. */
export interface TfliteQuantization {
  min?: ArrayLike<number>;
  max?: ArrayLike<number>;
  scale?: ArrayLike<number>;
  /** As many as scales. 64-bit integers in the file; a zero point that no number holds exactly is refused. */
  zeroPoint?: ArrayLike<number>;
  quantizedDimension?: number;
  /** Block-wise and other forms; NPU plugins refuse them or die (only LiteRT's CPU kernels read them). */
  details?: UnionValue<'QuantizationDetails'>;
}

export interface TfliteOperator {
  /** `BuiltinOperator` code. */
  code: number;
  /** Kernel version; runtimes refuse versions that they do not know, so it is the lowest that does the job. */
  version: number;
  /** Name of a CUSTOM operator. */
  customCode?: string;
  /** Tensor indices; -1 is an optional input that is left out. */
  inputs: readonly number[];
  outputs: readonly number[];
  options?: UnionValue<'BuiltinOptions'>;
  options2?: UnionValue<'BuiltinOptions2'>;
  customOptions?: ArrayLike<number>;
  customOptionsFormat?: number;
  /** Custom options that lie outside of the FlatBuffer. */
  largeCustomOptions?: BufferBytes;
  mutatingVariableInputs?: ArrayLike<number>;
  intermediates?: readonly number[];
  debugMetadataIndex?: number;
}

/** A callable entry: names for the inputs and outputs of a subgraph. */
export interface TfliteSignature {
  key: string;
  subgraph: number;
  inputs: readonly TflitePort[];
  outputs: readonly TflitePort[];
}

export interface TflitePort {
  name: string;
  /** Tensor index in the signature's subgraph. */
  tensor: number;
}

export interface TfliteMetadata {
  name: string;
  buffer: number;
}

/**
 * Checks that every index points at something, that buffer 0 is empty, and that operators and subgraphs have an order to run in.
 * @param code the error to throw: IO003 for a file that was read, TF103 for a model about to be written
 */
export function checkIndices(model: TfliteModel, code: ErrorCode): void {
  const fail = (message: string): never => {
    throw new NpucError(code, { message });
  };
  const inside = (index: number, count: number, what: string): void => {
    if (!Number.isInteger(index) || index < 0 || index >= count) fail(`${what} is ${index}, of ${count}`);
  };
  if (model.subgraphs.length === 0) fail('the model has no subgraph');
  if ((model.buffers[0]?.byteLength ?? 0) !== 0) fail('buffer 0 holds data; tensors without data point at it');
  const buffers = model.buffers.length;
  model.subgraphs.forEach((graph, g) => {
    const tensors = graph.tensors.length;
    const name = graph.name ?? `subgraph ${g}`;
    for (const { name: tensor, buffer, quantization } of graph.tensors) {
      inside(buffer, buffers, `the buffer of tensor ${tensor}`);
      const details = quantization?.details;
      if (details?.kind === 'BlockwiseQuantization' && details.scales !== undefined)
        inside(details.scales, tensors, `the tensor of scales of ${tensor}`);
    }
    for (const index of graph.inputs) inside(index, tensors, `an input of ${name}`);
    for (const index of graph.outputs) inside(index, tensors, `an output of ${name}`);
    for (const operator of graph.operators) {
      const op = `${name}, ${operatorName(operator.code)}`;
      for (const index of operator.inputs) if (index !== -1) inside(index, tensors, `an input of ${op}`);
      for (const index of operator.outputs) inside(index, tensors, `an output of ${op}`);
      for (const index of operator.intermediates ?? []) inside(index, tensors, `an intermediate of ${op}`);
    }
    for (const called of calledSubgraphs(graph)) inside(called, model.subgraphs.length, `a subgraph called by ${name}`);
  });
  for (const signature of model.signatures) {
    inside(signature.subgraph, model.subgraphs.length, `the subgraph of signature ${signature.key}`);
    const tensors = model.subgraphs[signature.subgraph]!.tensors.length;
    for (const port of [...signature.inputs, ...signature.outputs]) {
      inside(port.tensor, tensors, `${port.name} of signature ${signature.key}`);
    }
  }
  for (const entry of model.metadata) inside(entry.buffer, buffers, `the buffer of metadata ${entry.name}`);
  checkOrder(model, fail);
  checkCalls(model, fail);
}

/** Operators stand in the order in which they run: none reads what it or a later one writes. */
function checkOrder(model: TfliteModel, fail: (message: string) => never): void {
  model.subgraphs.forEach((graph, g) => {
    const writers = new Map<number, number>();
    graph.operators.forEach(({ outputs }, at) => {
      for (const output of outputs) if (!writers.has(output)) writers.set(output, at);
    });
    const given = new Set(graph.inputs);
    graph.operators.forEach(({ code, inputs }, at) => {
      const early = inputs.find((input) => !given.has(input) && (writers.get(input) ?? -1) >= at);
      if (early === undefined || graph.tensors[early]!.isVariable) return;
      fail(
        `${graph.name ?? `subgraph ${g}`}, ${operatorName(code)} reads ${graph.tensors[early]!.name} before it is made`,
      );
    });
  });
}

/** No subgraph calls itself, be it through others: a runtime would never come to an end. */
function checkCalls(model: TfliteModel, fail: (message: string) => never): void {
  const calls = model.subgraphs.map((graph) => calledSubgraphs(graph));
  const callers = model.subgraphs.map(() => 0);
  for (const called of calls.flat()) callers[called]!++;
  const free = callers.flatMap((count, index) => (count === 0 ? [index] : []));
  for (const index of free) {
    for (const called of calls[index]!) if (--callers[called]! === 0) free.push(called);
  }
  if (free.length === model.subgraphs.length) return;
  const circle = callers.flatMap((count, index) => (count > 0 ? [index] : []));
  fail(`the subgraphs ${circle.slice(0, 10).join(', ')} call each other in a circle`);
}

/** Options that name another subgraph. */
const CALLS: ReadonlySet<string> = new Set([
  'subgraph',
  'thenSubgraphIndex',
  'elseSubgraphIndex',
  'condSubgraphIndex',
  'bodySubgraphIndex',
  'initSubgraphIndex',
  'decompositionSubgraphIndex',
  'updateComputationSubgraphIndex',
  'comparatorSubgraphIndex',
]);

/** Indices of the subgraphs that a subgraph's operators call. */
function calledSubgraphs(graph: TfliteSubgraph): number[] {
  return graph.operators.flatMap(({ options, options2 }) =>
    Object.entries({ ...options, ...options2 }).flatMap(([key, value]) => {
      if (key === 'branchSubgraphIndices') return Array.from(value as ArrayLike<number>);
      return CALLS.has(key) ? [Number(value)] : [];
    }),
  );
}

/**
 * Checks what every file of this tool promises beyond the format, because a consumer depends on it: names unique over
 * the file (litert-quantizer), signatures that list exactly their subgraph's inputs and outputs (the vendor plugins
 * rebuild signatures from the subgraph, LiteRT.js refuses a difference), distinct keys and port names.
 * @throws TF101 for names, TF102 for signatures
 */
export function checkContract(model: TfliteModel): void {
  const seen = new Set<string>();
  for (const graph of model.subgraphs) {
    for (const { name } of graph.tensors) {
      if (seen.has(name)) {
        throw new NpucError('TF101', { message: `two tensors are called ${name}`, where: graph.name ?? name });
      }
      seen.add(name);
    }
  }
  const keys = new Set<string>();
  for (const signature of model.signatures) {
    if (keys.has(signature.key)) {
      throw new NpucError('TF102', { message: `two signatures are called ${signature.key}`, where: signature.key });
    }
    keys.add(signature.key);
    const graph = model.subgraphs[signature.subgraph]!;
    checkPorts(signature, 'inputs', signature.inputs, graph.inputs);
    checkPorts(signature, 'outputs', signature.outputs, graph.outputs);
  }
}

function checkPorts(
  signature: TfliteSignature,
  side: 'inputs' | 'outputs',
  ports: readonly TflitePort[],
  tensors: readonly number[],
): void {
  const fail = (message: string): never => {
    throw new NpucError('TF102', { message, where: `signature ${signature.key}` });
  };
  if (new Set(ports.map((port) => port.name)).size !== ports.length) fail(`two of its ${side} have one name`);
  const named = ports.map((port) => port.tensor).sort((a, b) => a - b);
  const listed = [...tensors].sort((a, b) => a - b);
  if (named.length !== listed.length || named.some((tensor, i) => tensor !== listed[i])) {
    fail(`its ${side} are the tensors ${named.join(', ')}, its subgraph's are ${listed.join(', ')}`);
  }
}

/** True for a file that a vendor plugin compiled: its byte code lies behind the FlatBuffer, at offsets we cannot see. */
export function isCompiled(model: TfliteModel): boolean {
  return model.subgraphs.some((graph) =>
    graph.operators.some(
      (operator) => operator.code === BuiltinOperator.CUSTOM && operator.customCode === 'DISPATCH_OP',
    ),
  );
}
