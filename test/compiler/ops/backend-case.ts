import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { NpucError } from '../../../compiler/errors.ts';
import { decodeOnnx } from '../../../compiler/import/onnx.ts';
import { readGraph } from '../../../compiler/import/onnx-graph.ts';
import {
  asMessage,
  MODEL,
  type ModelMessage,
  TENSOR,
  type TensorMessage,
} from '../../../compiler/import/onnx-schema.ts';
import { TensorSource } from '../../../compiler/import/onnx-tensor.ts';
import { DimensionNames } from '../../../compiler/import/onnx-types.ts';
import {
  BytesSource,
  decodeMessage,
  type Field,
  type Schema,
  type Span,
  WireReader,
} from '../../../compiler/import/protobuf.ts';
import { type Graph, Module, type ValueType } from '../../../compiler/ir/graph.ts';
import { EMPTY, type RuntimeValue, sequenceOf } from '../../../compiler/ops/runtime-value.ts';
import { backendSuitePath } from '../../backend-suite.ts';

/** One data set of a case: inputs by name and expected outputs in order; what has no file is undefined. */
export interface CaseData {
  readonly feeds: Record<string, RuntimeValue>;
  readonly expected: readonly (RuntimeValue | undefined)[];
}

/** The bytes of a case's model. */
export function readCaseModel(name: string): Uint8Array {
  return new Uint8Array(readFileSync(backendSuitePath(name, 'model.onnx')));
}

/**
 * Opens the model of a case. The suite has models of opset 6, below what openOnnx takes; the ops do follow that opset, so
 * these graphs are read without the check of the version.
 */
export function openCase(name: string): Module {
  const bytes = readCaseModel(name);
  try {
    return decodeOnnx(bytes, name);
  } catch (error) {
    if (!(error instanceof NpucError) || error.code !== 'IM301') throw error;
  }
  const source = new BytesSource(bytes, name);
  const message = asMessage<ModelMessage>(decodeMessage(new WireReader(source), MODEL, source.size));
  const dimensions = new DimensionNames();
  dimensions.collect(message.graph!);
  const module = new Module();
  module.opsets.clear();
  for (const entry of message.opsets ?? []) module.opsets.set(entry.domain ?? '', Number(entry.version));
  module.graphs.push(readGraph(message.graph!, { tensors: new TensorSource(source), dimensions }));
  return module;
}

/** The data sets of a case. `types` are the declared types of the graph's outputs. */
export function readCaseData(name: string, graph: Graph, types: readonly (ValueType | undefined)[]): CaseData[] {
  const folder = backendSuitePath(name);
  const sets = readdirSync(folder).filter((entry) => entry.startsWith('test_data_set_'));
  return sets.sort().map((set) => {
    const read = (file: string, type: ValueType | undefined): RuntimeValue | undefined => {
      const path = backendSuitePath(name, set, file);
      return existsSync(path) ? readValue(new Uint8Array(readFileSync(path)), type) : undefined;
    };
    const feeds: Record<string, RuntimeValue> = {};
    graph.inputs.forEach((input, index) => {
      const value = read(`input_${index}.pb`, input.type);
      if (value !== undefined) feeds[input.name] = value;
    });
    return { feeds, expected: types.map((type, index) => read(`output_${index}.pb`, type)) };
  });
}

function table(title: string, ...fields: Field[]): Schema {
  return { title, fields, byNumber: new Map(fields.map((field) => [field.number, field])), keepsSpan: false };
}

// onnx-data.proto: elem_type 1 is a tensor, 3 a sequence, 5 an optional.
const SEQUENCE = table(
  'SequenceProto',
  { name: 'elementType', number: 2, kind: 'int' },
  { name: 'tensors', number: 3, kind: 'messages', schema: TENSOR },
  { name: 'sequences', number: 5, kind: 'byteStrings' },
);
const OPTIONAL = table(
  'OptionalProto',
  { name: 'elementType', number: 2, kind: 'int' },
  { name: 'tensor', number: 3, kind: 'message', schema: TENSOR },
  { name: 'sequence', number: 5, kind: 'bytes' },
);

function decode<T>(bytes: Uint8Array, schema: Schema): T {
  return asMessage<T>(decodeMessage(new WireReader(new BytesSource(bytes)), schema, bytes.length));
}

function tensorOf(message: TensorMessage, bytes: Uint8Array): RuntimeValue {
  return new TensorSource(new BytesSource(bytes)).read(message, message.name ?? 'tensor').toData();
}

function bytesOf(value: Uint8Array | Span): Uint8Array {
  return value instanceof Uint8Array ? value : value.read();
}

/** A .pb file of the suite: a TensorProto, or what the type says. */
function readValue(bytes: Uint8Array, type: ValueType | undefined): RuntimeValue {
  if (type?.kind === 'sequence') return readSequence(bytes);
  if (type?.kind !== 'optional') return tensorOf(decode<TensorMessage>(bytes, TENSOR), bytes);
  const message = decode<{ tensor?: TensorMessage; sequence?: Uint8Array | Span }>(bytes, OPTIONAL);
  if (message.tensor) return tensorOf(message.tensor, bytes);
  return message.sequence ? readSequence(bytesOf(message.sequence)) : EMPTY;
}

function readSequence(bytes: Uint8Array): RuntimeValue {
  const message = decode<{ tensors?: TensorMessage[]; sequences?: (Uint8Array | Span)[] }>(bytes, SEQUENCE);
  if (message.sequences) return sequenceOf(message.sequences.map((entry) => readSequence(bytesOf(entry))));
  return sequenceOf((message.tensors ?? []).map((entry) => tensorOf(entry, bytes)));
}
