import { BUNDLE_TABLES, BUNDLE_VALUES } from './schema-bundle.ts';
import { BUILTIN_OPTIONS, BUILTIN_OPTIONS_2 } from './schema-options.ts';

/**
 * The TFLite schema as data. A table is an object whose fields stand in ABI (slot) order, which is what makes a reader
 * understand a writer: never reorder, never insert. Spelling of a field:
 *   `i32`, `bool`, `u64`...    scalar, absent means 0; `i32=1` absent means 1
 *   `string`, `i32[]`, `Tensor`, `Tensor[]`    reference, may be absent
 *   `union X`    two slots: the code of the member, then the member
 *   `bytes`      a u8 vector that can be gigabytes: read lazily, written last, aligned to 16 bytes
 *   `deprecated` a slot that must stay empty
 * Source: the schema of LiteRT 2.3.0 (schema.fbs), checked against ai-edge-litert 2.3.0.
 */
const CORE = {
  CustomQuantization: { custom: 'u8[]' },
  BlockwiseQuantization: { scales: 'i32', zeroPoints: 'i32', blockSize: 'i32', blockShape: 'i32[]' },
  MultiAxisQuantization: { scales: 'i32', zeroPoints: 'i32', blockSize: 'i32', quantizedDimensions: 'i32[]' },
  QuantizationParameters: {
    min: 'f32[]',
    max: 'f32[]',
    scale: 'f32[]',
    zeroPoint: 'i64[]',
    details: 'union QuantizationDetails',
    quantizedDimension: 'i32',
  },
  Int32Vector: { values: 'i32[]' },
  Uint16Vector: { values: 'u16[]' },
  Uint8Vector: { values: 'u8[]' },
  DimensionMetadata: {
    format: 'i8',
    denseSize: 'i32',
    arraySegments: 'union SparseIndexVector',
    arrayIndices: 'union SparseIndexVector',
  },
  SparsityParameters: { traversalOrder: 'i32[]', blockMap: 'i32[]', dimMetadata: 'DimensionMetadata[]' },
  VariantSubType: { shape: 'i32[]', type: 'i8', hasRank: 'bool' },
  Tensor: {
    shape: 'i32[]',
    type: 'i8',
    buffer: 'u32',
    name: 'string',
    quantization: 'QuantizationParameters',
    isVariable: 'bool',
    sparsity: 'SparsityParameters',
    shapeSignature: 'i32[]',
    hasRank: 'bool',
    variantTensors: 'VariantSubType[]',
    externalBuffer: 'u32',
  },
  OperatorCode: { deprecatedBuiltinCode: 'i8', customCode: 'string', version: 'i32=1', builtinCode: 'i32' },
  Operator: {
    opcodeIndex: 'u32',
    inputs: 'i32[]',
    outputs: 'i32[]',
    builtinOptions: 'union BuiltinOptions',
    customOptions: 'u8[]',
    customOptionsFormat: 'i8',
    mutatingVariableInputs: 'bool[]',
    intermediates: 'i32[]',
    largeCustomOptionsOffset: 'u64',
    largeCustomOptionsSize: 'u64',
    builtinOptions2: 'union BuiltinOptions2',
    debugMetadataIndex: 'i32=-1',
  },
  SubGraph: {
    tensors: 'Tensor[]',
    inputs: 'i32[]',
    outputs: 'i32[]',
    operators: 'Operator[]',
    name: 'string',
    debugMetadataIndex: 'i32=-1',
  },
  Buffer: { data: 'bytes', offset: 'u64', size: 'u64' },
  ExternalBufferGroup: { name: 'string' },
  ExternalBuffer: { id: 'u32', group: 'u32', offset: 'u64', length: 'u64', packing: 'string' },
  Metadata: { name: 'string', buffer: 'u32' },
  TensorMap: { name: 'string', tensorIndex: 'u32' },
  SignatureDef: {
    inputs: 'TensorMap[]',
    outputs: 'TensorMap[]',
    signatureKey: 'string',
    unused3: 'deprecated',
    subgraphIndex: 'u32',
  },
  Model: {
    version: 'u32',
    operatorCodes: 'OperatorCode[]',
    subgraphs: 'SubGraph[]',
    description: 'string',
    buffers: 'Buffer[]',
    metadataBuffer: 'i32[]',
    metadata: 'Metadata[]',
    signatureDefs: 'SignatureDef[]',
    externalBufferGroups: 'ExternalBufferGroup[]',
    externalBuffers: 'ExternalBuffer[]',
  },
} as const;

export const TABLES = { ...CORE, ...BUILTIN_OPTIONS, ...BUILTIN_OPTIONS_2, ...BUNDLE_TABLES, ...BUNDLE_VALUES };

/** Members of each union; the position, counted from 1, is the code. */
export const UNIONS = {
  QuantizationDetails: ['CustomQuantization', 'BlockwiseQuantization', 'MultiAxisQuantization'],
  SparseIndexVector: ['Int32Vector', 'Uint16Vector', 'Uint8Vector'],
  BuiltinOptions: Object.keys(BUILTIN_OPTIONS) as (keyof typeof BUILTIN_OPTIONS)[],
  BuiltinOptions2: Object.keys(BUILTIN_OPTIONS_2) as (keyof typeof BUILTIN_OPTIONS_2)[],
  BundleValue: Object.keys(BUNDLE_VALUES) as (keyof typeof BUNDLE_VALUES)[],
} as const;

/** The four bytes after the root offset, of roots that have any. */
export const FILE_IDENTIFIERS: Readonly<Partial<Record<TableName, string>>> = { Model: 'TFL3' };

export type TableName = keyof typeof TABLES;
export type UnionName = keyof typeof UNIONS;
export type ScalarType = 'bool' | 'i8' | 'u8' | 'i16' | 'u16' | 'i32' | 'u32' | 'i64' | 'u64' | 'f32';

/** Bytes of one scalar. */
export const SCALAR_BYTES: Readonly<Record<ScalarType, 1 | 2 | 4 | 8>> = {
  bool: 1,
  i8: 1,
  u8: 1,
  i16: 2,
  u16: 2,
  i32: 4,
  u32: 4,
  f32: 4,
  i64: 8,
  u64: 8,
};

/** Bytes in memory, or bytes that are produced when they are written. */
export type BufferBytes = Uint8Array | StreamedBytes;

export interface StreamedBytes {
  readonly byteLength: number;
  /** Hands all bytes over in order, in chunks of any size; chunks may be reused after the call returns. */
  write(sink: (chunk: Uint8Array) => void): void;
}

type ScalarValue<S> = S extends 'bool' ? boolean : S extends 'i64' | 'u64' ? bigint : number;
type VectorValue<S> = ArrayLike<S extends 'i64' | 'u64' ? bigint : number>;
type FieldValue<F> = F extends `${infer S}=${string}`
  ? ScalarValue<S>
  : F extends ScalarType
    ? ScalarValue<F>
    : F extends 'string'
      ? string
      : F extends 'bytes'
        ? BufferBytes
        : F extends `union ${infer U extends UnionName}`
          ? UnionValue<U>
          : F extends `${infer E}[]`
            ? E extends ScalarType
              ? VectorValue<E>
              : readonly TableValue<E & TableName>[]
            : TableValue<F & TableName>;

/**
 * A table as a plain object. Read: every scalar is there, absent references are not. Written: what is missing takes the
 * schema's default. Vectors of scalars are read as typed arrays.
 */
export type TableValue<T extends TableName> = {
  -readonly [K in keyof (typeof TABLES)[T] as (typeof TABLES)[T][K] extends 'deprecated' ? never : K]?: FieldValue<
    (typeof TABLES)[T][K]
  >;
};

/** A member of a union: its table, with the table's name as `kind`. */
export type UnionValue<U extends UnionName> = {
  [M in (typeof UNIONS)[U][number]]: { kind: M } & TableValue<M>;
}[(typeof UNIONS)[U][number]];

/** A field, spelled out for the codec. */
export type Field = { readonly name: string; readonly slot: number } & (
  | { readonly kind: 'scalar'; readonly type: ScalarType; readonly absent: number | bigint }
  | { readonly kind: 'vector'; readonly type: ScalarType }
  | { readonly kind: 'string' }
  | { readonly kind: 'bytes' }
  | { readonly kind: 'table'; readonly table: TableName }
  | { readonly kind: 'tables'; readonly table: TableName }
  | { readonly kind: 'union'; readonly members: readonly TableName[] }
);

export interface TableLayout {
  readonly slots: number;
  readonly fields: readonly Field[];
}

const layouts = new Map<TableName, TableLayout>();

/** The slots and kinds of a table's fields. */
export function tableLayout(table: TableName): TableLayout {
  let layout = layouts.get(table);
  if (!layout) {
    layout = parseLayout(TABLES[table]);
    layouts.set(table, layout);
  }
  return layout;
}

function parseLayout(table: Readonly<Record<string, string>>): TableLayout {
  const fields: Field[] = [];
  let slot = 0;
  for (const [name, spelling] of Object.entries(table)) {
    if (spelling.startsWith('union ')) {
      fields.push({ name, slot, kind: 'union', members: UNIONS[spelling.slice(6) as UnionName] });
      slot += 2;
      continue;
    }
    if (spelling !== 'deprecated') fields.push(parseField(name, slot, spelling));
    slot++;
  }
  return { slots: slot, fields };
}

function parseField(name: string, slot: number, spelling: string): Field {
  if (spelling === 'string' || spelling === 'bytes') return { name, slot, kind: spelling };
  const vector = spelling.endsWith('[]');
  const [base = '', absent = '0'] = spelling.replace('[]', '').split('=');
  if (!isScalar(base)) return { name, slot, kind: vector ? 'tables' : 'table', table: base as TableName };
  if (vector) return { name, slot, kind: 'vector', type: base };
  const number = absent === 'true' ? 1 : Number(absent);
  return { name, slot, kind: 'scalar', type: base, absent: SCALAR_BYTES[base] === 8 ? BigInt(number) : number };
}

function isScalar(name: string): name is ScalarType {
  return name in SCALAR_BYTES;
}
