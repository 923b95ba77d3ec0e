import type { Field, FieldKind, Message, Schema, Span } from './protobuf.ts';

/**
 * The ONNX messages as tables for reading and writing, after onnx.proto of ONNX 1.20 (IR version 13). Fields that the IR has
 * no place for (training, device configurations, quantization annotations, model domain and version) are left out on
 * purpose: they are kept as unknown bytes and written back as they were.
 */

/** IR versions that are read: 1 (2017) to 13 (ONNX 1.20). */
export const NEWEST_IR_VERSION = 13;
/** Opset versions of the ONNX domain that are read. */
export const OPSET_RANGE: readonly [number, number] = [7, 25];

/** AttributeProto.AttributeType. */
export const ATTRIBUTE_TYPE = {
  float: 1,
  int: 2,
  string: 3,
  tensor: 4,
  graph: 5,
  floats: 6,
  ints: 7,
  strings: 8,
  tensors: 9,
  graphs: 10,
  type: 13,
} as const;

/** TensorProto.DataLocation. */
export const EXTERNAL = 1;

export type Int = number | bigint;

/** Bytes that a writer copies out: a Span of another file, or a Tensor. */
export interface Blob {
  readonly byteLength: number;
  read(): Uint8Array;
}

export interface EntryMessage {
  key?: string;
  value?: string;
}

export interface OpsetMessage {
  domain?: string;
  version?: Int;
}

export interface TensorMessage {
  dims?: Int[];
  dataType?: Int;
  segment?: Span;
  floatData?: Span[];
  int32Data?: Span[];
  stringData?: Uint8Array[];
  int64Data?: Span[];
  name?: string;
  rawData?: Blob;
  doubleData?: Span[];
  uint64Data?: Span[];
  doc?: string;
  externalData?: EntryMessage[];
  dataLocation?: Int;
  metadata?: EntryMessage[];
}

export interface DimensionMessage {
  value?: Int;
  param?: string;
}

export interface TensorTypeMessage {
  elementType?: Int;
  shape?: { dims?: DimensionMessage[] };
}

export interface TypeMessage {
  tensor?: TensorTypeMessage;
  sequence?: { element?: TypeMessage };
  map?: { keyType?: Int; element?: TypeMessage };
  optional?: { element?: TypeMessage };
  /** Sparse tensor, opaque: kinds that the IR has no type for. */
  unknown?: Uint8Array;
}

export interface ValueInfoMessage {
  name?: string;
  type?: TypeMessage;
  doc?: string;
  metadata?: EntryMessage[];
  unknown?: Uint8Array;
}

export interface AttributeMessage {
  name?: string;
  float?: number;
  int?: Int;
  string?: Uint8Array;
  tensor?: TensorMessage;
  graph?: GraphMessage;
  floats?: number[];
  ints?: Int[];
  strings?: Uint8Array[];
  tensors?: TensorMessage[];
  graphs?: GraphMessage[];
  typeProto?: TypeMessage;
  type?: Int;
  reference?: string;
  unknown?: Uint8Array;
  span?: Span;
}

export interface NodeMessage {
  inputs?: string[];
  outputs?: string[];
  name?: string;
  op?: string;
  /** When written, an attribute may be ready bytes. */
  attributes?: (AttributeMessage | Uint8Array)[];
  doc?: string;
  domain?: string;
  overload?: string;
  metadata?: EntryMessage[];
  unknown?: Uint8Array;
}

export interface GraphMessage {
  nodes?: NodeMessage[];
  name?: string;
  initializers?: TensorMessage[];
  doc?: string;
  inputs?: ValueInfoMessage[];
  outputs?: ValueInfoMessage[];
  valueInfos?: ValueInfoMessage[];
  sparseInitializers?: SparseMessage[];
  metadata?: EntryMessage[];
  unknown?: Uint8Array;
}

export interface SparseMessage {
  values?: TensorMessage;
  span?: Span;
}

export interface FunctionMessage {
  name?: string;
  inputs?: string[];
  outputs?: string[];
  attributes?: string[];
  nodes?: NodeMessage[];
  doc?: string;
  opsets?: OpsetMessage[];
  domain?: string;
  /** Attributes with default values, byte for byte. */
  defaults?: Uint8Array[];
  valueInfos?: ValueInfoMessage[];
  overload?: string;
  metadata?: EntryMessage[];
  unknown?: Uint8Array;
}

export interface ModelMessage {
  irVersion?: Int;
  producerName?: string;
  producerVersion?: string;
  doc?: string;
  graph?: GraphMessage;
  opsets?: OpsetMessage[];
  metadata?: EntryMessage[];
  functions?: FunctionMessage[];
  unknown?: Uint8Array;
}

function field(number: number, name: string, kind: FieldKind): Field {
  return { number, name, kind };
}
function numbers(number: number, name: string, wire: 0 | 1 | 5): Field {
  return { number, name, kind: 'numbers', wire };
}
function one(number: number, name: string, schema: Schema): Field {
  return { number, name, kind: 'message', schema };
}
function many(number: number, name: string, schema: Schema): Field {
  return { number, name, kind: 'messages', schema };
}

/** Messages refer to each other in circles, so a schema is made empty and filled afterwards. */
class Table implements Schema {
  readonly title: string;
  readonly keepsSpan: boolean;
  readonly fields: Field[] = [];
  readonly byNumber: Map<number, Field> = new Map();

  constructor(title: string, keepsSpan = false) {
    this.title = title;
    this.keepsSpan = keepsSpan;
  }

  fill(...fields: Field[]): void {
    for (const entry of fields) {
      this.fields.push(entry);
      this.byNumber.set(entry.number, entry);
    }
  }
}

const entry = new Table('StringStringEntryProto');
const opset = new Table('OperatorSetIdProto');
const tensor = new Table('TensorProto');
const sparse = new Table('SparseTensorProto', true);
const dimension = new Table('TensorShapeProto.Dimension');
const shape = new Table('TensorShapeProto');
const tensorType = new Table('TypeProto.Tensor');
const sequenceType = new Table('TypeProto.Sequence');
const mapType = new Table('TypeProto.Map');
const optionalType = new Table('TypeProto.Optional');
const type = new Table('TypeProto');
const valueInfo = new Table('ValueInfoProto');
const attribute = new Table('AttributeProto', true);
const node = new Table('NodeProto');
const graph = new Table('GraphProto');
const localFunction = new Table('FunctionProto');
const model = new Table('ModelProto');

entry.fill(field(1, 'key', 'string'), field(2, 'value', 'string'));
opset.fill(field(1, 'domain', 'string'), field(2, 'version', 'int'));
tensor.fill(
  field(1, 'dims', 'ints'),
  field(2, 'dataType', 'int'),
  field(3, 'segment', 'span'),
  numbers(4, 'floatData', 5),
  numbers(5, 'int32Data', 0),
  field(6, 'stringData', 'byteStrings'),
  numbers(7, 'int64Data', 0),
  field(8, 'name', 'string'),
  field(9, 'rawData', 'span'),
  numbers(10, 'doubleData', 1),
  numbers(11, 'uint64Data', 0),
  field(12, 'doc', 'string'),
  many(13, 'externalData', entry),
  field(14, 'dataLocation', 'int'),
  many(16, 'metadata', entry),
);
sparse.fill(one(1, 'values', tensor));
dimension.fill(field(1, 'value', 'int'), field(2, 'param', 'string'));
shape.fill(many(1, 'dims', dimension));
tensorType.fill(field(1, 'elementType', 'int'), one(2, 'shape', shape));
sequenceType.fill(one(1, 'element', type));
mapType.fill(field(1, 'keyType', 'int'), one(2, 'element', type));
optionalType.fill(one(1, 'element', type));
type.fill(
  one(1, 'tensor', tensorType),
  one(4, 'sequence', sequenceType),
  one(5, 'map', mapType),
  one(9, 'optional', optionalType),
);
valueInfo.fill(field(1, 'name', 'string'), one(2, 'type', type), field(3, 'doc', 'string'), many(4, 'metadata', entry));
attribute.fill(
  field(1, 'name', 'string'),
  field(2, 'float', 'float'),
  field(3, 'int', 'int'),
  field(4, 'string', 'bytes'),
  one(5, 'tensor', tensor),
  one(6, 'graph', graph),
  field(7, 'floats', 'floats'),
  field(8, 'ints', 'ints'),
  field(9, 'strings', 'byteStrings'),
  many(10, 'tensors', tensor),
  many(11, 'graphs', graph),
  one(14, 'typeProto', type),
  field(20, 'type', 'int'),
  field(21, 'reference', 'string'),
);
node.fill(
  field(1, 'inputs', 'strings'),
  field(2, 'outputs', 'strings'),
  field(3, 'name', 'string'),
  field(4, 'op', 'string'),
  many(5, 'attributes', attribute),
  field(6, 'doc', 'string'),
  field(7, 'domain', 'string'),
  field(8, 'overload', 'string'),
  many(9, 'metadata', entry),
);
graph.fill(
  many(1, 'nodes', node),
  field(2, 'name', 'string'),
  many(5, 'initializers', tensor),
  field(10, 'doc', 'string'),
  many(11, 'inputs', valueInfo),
  many(12, 'outputs', valueInfo),
  many(13, 'valueInfos', valueInfo),
  many(15, 'sparseInitializers', sparse),
  many(16, 'metadata', entry),
);
localFunction.fill(
  field(1, 'name', 'string'),
  field(4, 'inputs', 'strings'),
  field(5, 'outputs', 'strings'),
  field(6, 'attributes', 'strings'),
  many(7, 'nodes', node),
  field(8, 'doc', 'string'),
  many(9, 'opsets', opset),
  field(10, 'domain', 'string'),
  field(11, 'defaults', 'byteStrings'),
  many(12, 'valueInfos', valueInfo),
  field(13, 'overload', 'string'),
  many(14, 'metadata', entry),
);
model.fill(
  field(1, 'irVersion', 'int'),
  field(2, 'producerName', 'string'),
  field(3, 'producerVersion', 'string'),
  field(6, 'doc', 'string'),
  one(7, 'graph', graph),
  many(8, 'opsets', opset),
  many(14, 'metadata', entry),
  many(25, 'functions', localFunction),
);

/** The tables that are entered from outside. */
export const MODEL: Schema = model;
export const TENSOR: Schema = tensor;
export const ATTRIBUTE: Schema = attribute;
export const VALUE_INFO: Schema = valueInfo;

/** Types a decoded message: the table and the interface above describe the same message. */
export function asMessage<T>(message: Message): T {
  return message as unknown as T;
}
