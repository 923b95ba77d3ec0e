import { createHash, type Hash, randomUUID } from 'node:crypto';
import { closeSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';
import { NpucError } from '../../compiler/errors.ts';
import { alignUp, type FlatBuffer, type Segment, writeFlatBuffer } from './flatbuffer-writer.ts';
import {
  checkContract,
  checkIndices,
  isCompiled,
  type TfliteModel,
  type TfliteOperator,
  type TfliteTensor,
} from './model.ts';
import type { BufferBytes, TableValue } from './schema.ts';
import { operatorName } from './schema-enums.ts';

export interface TfliteWriteOptions {
  /**
   * Where buffers lie: behind the FlatBuffer, found by Buffer.offset and .size (true), or inside it (false).
   * Left out: behind when they hold more than 1.5 GB, because a FlatBuffer ends at 2 GiB.
   * LiteRT.js reads only files that fit its 2 GiB of memory, in either form.
   */
  externalBuffers?: boolean;
  /**
   * Writes a model that someone else made as it is: the promises of our own files (unique tensor names, signatures
   * equal to subgraphs) are not checked.
   */
  foreign?: boolean;
}

export interface WrittenTflite {
  byteLength: number;
  /** Lower-case hexadecimal. */
  sha256: string;
}

/** Bytes of buffers above which they leave the FlatBuffer: well below its 2 GiB, the tables need room too. */
const INLINE_LIMIT = 1.5e9;

/**
 * Writes a model to a file. Buffers are streamed, whatever their place: memory holds the tables and one chunk. The file
 * appears complete or not at all. Same model, same bytes.
 * @throws TF101, TF102 (see checkContract), TF103 when the model contradicts itself, TF104 for a compiled file, IO002
 */
export function writeTflite(path: string, model: TfliteModel, options: TfliteWriteOptions = {}): WrittenTflite {
  const layout = layOut(model, options);
  const partial = `${path}.${randomUUID()}.partial`;
  let descriptor: number | undefined;
  try {
    descriptor = openSync(partial, 'wx');
    const file = descriptor;
    const hash = createHash('sha256');
    stream(layout, (chunk) => writeFully(file, chunk, hash));
    closeSync(descriptor);
    descriptor = undefined;
    renameSync(partial, path);
    return { byteLength: layout.byteLength, sha256: hash.digest('hex') };
  } catch (cause) {
    if (descriptor !== undefined) closeSync(descriptor);
    rmSync(partial, { force: true });
    // What a buffer's own source throws is not a failure to write.
    if (typeof (cause as NodeJS.ErrnoException).syscall !== 'string') throw cause;
    throw new NpucError('IO002', { message: `cannot write ${path}: ${(cause as Error).message}`, where: path, cause });
  }
}

/** The file's length and form, known without reading a buffer. @throws as writeTflite, IO002 apart */
export function planTflite(
  model: TfliteModel,
  options: TfliteWriteOptions = {},
): { byteLength: number; externalBuffers: boolean } {
  return { byteLength: layOut(model, options).byteLength, externalBuffers: areExternal(model, options) };
}

/** The file's bytes in memory; for small models and tests. @throws as writeTflite, IO002 apart */
export function encodeTflite(model: TfliteModel, options: TfliteWriteOptions = {}): Uint8Array {
  const layout = layOut(model, options);
  const bytes = new Uint8Array(layout.byteLength);
  let position = 0;
  stream(layout, (chunk) => {
    bytes.set(chunk, position);
    position += chunk.byteLength;
  });
  return bytes;
}

function writeFully(descriptor: number, chunk: Uint8Array, hash: Hash): void {
  hash.update(chunk);
  // One writeSync call moves at most 2 GiB, and may move less than it is given.
  for (let done = 0; done < chunk.byteLength; ) {
    done += writeSync(descriptor, chunk, done, Math.min(chunk.byteLength - done, 1 << 30));
  }
}

/** Head, segments in order, zeros between them. */
function stream(layout: FlatBuffer, sink: (chunk: Uint8Array) => void): void {
  sink(layout.head);
  let position = layout.head.byteLength;
  for (const segment of layout.segments) {
    if (segment.position > position) sink(new Uint8Array(segment.position - position));
    position = segment.position + segment.bytes.byteLength;
    if (segment.bytes instanceof Uint8Array) {
      sink(segment.bytes);
      continue;
    }
    let given = 0;
    segment.bytes.write((chunk) => {
      given += chunk.byteLength;
      if (given <= segment.bytes.byteLength) sink(chunk);
    });
    if (given !== segment.bytes.byteLength) {
      throw new NpucError('TF103', {
        message: `a buffer promised ${segment.bytes.byteLength} bytes and gave ${given}`,
      });
    }
  }
}

function areExternal(model: TfliteModel, options: TfliteWriteOptions): boolean {
  const payload = model.buffers.reduce((sum, bytes) => sum + (bytes?.byteLength ?? 0), 0);
  return options.externalBuffers ?? payload > INLINE_LIMIT;
}

function layOut(model: TfliteModel, options: TfliteWriteOptions): FlatBuffer {
  checkIndices(model, 'TF103');
  if (!options.foreign) checkContract(model);
  if (isCompiled(model)) {
    throw new NpucError('TF104', {
      message: 'the model holds DISPATCH_OP: a vendor plugin compiled it, and its byte code is bound to this very file',
      hint: 'change the model before it is compiled',
    });
  }
  const external = areExternal(model, options);
  const codes = new OperatorCodes();
  // The runtime looks for metadata inside the FlatBuffer only.
  const inside = new Set([...model.metadata.map((entry) => entry.buffer), ...Array.from(model.metadataBuffer ?? [])]);
  const tables = (places: Places): TableValue<'Model'> => ({
    version: model.version,
    description: model.description,
    subgraphs: model.subgraphs.map((graph) => ({
      name: graph.name,
      tensors: graph.tensors.map(rawTensor),
      inputs: graph.inputs,
      outputs: graph.outputs,
      operators: graph.operators.map((operator) => rawOperator(operator, codes, places)),
      debugMetadataIndex: graph.debugMetadataIndex,
    })),
    operatorCodes: codes.table,
    buffers: model.buffers.map((bytes, i) =>
      // 0 bytes have no place outside: a size of 0 there reads as no data at all.
      external && bytes?.byteLength && !inside.has(i) ? places.place(bytes) : { data: bytes },
    ),
    signatureDefs: model.signatures.map((signature) => ({
      signatureKey: signature.key,
      subgraphIndex: signature.subgraph,
      inputs: signature.inputs.map((port) => ({ name: port.name, tensorIndex: port.tensor })),
      outputs: signature.outputs.map((port) => ({ name: port.name, tensorIndex: port.tensor })),
    })),
    metadata: model.metadata,
    metadataBuffer: model.metadataBuffer,
    externalBufferGroups: model.externalBufferGroups,
    externalBuffers: model.externalBuffers,
  });
  // Absolute offsets need the length of what comes before them. The first pass writes placeholders of the same width.
  const draft = new Places(0);
  const sized = writeFlatBuffer('Model', tables(draft));
  if (draft.segments.length === 0) return sized;
  const places = new Places(sized.byteLength);
  const final = writeFlatBuffer('Model', tables(places));
  return { head: final.head, segments: [...final.segments, ...places.segments], byteLength: places.end };
}

/** Hands out places behind the FlatBuffer, in the order of asking. */
class Places {
  readonly segments: Segment[] = [];
  end: number;

  constructor(start: number) {
    this.end = start;
  }

  /** Offset and size are never 0 here, so the fields are always written and their width does not change. */
  place(bytes: BufferBytes): { offset: bigint; size: bigint } {
    const position = alignUp(this.end) || 16;
    this.segments.push({ position, bytes });
    this.end = position + bytes.byteLength;
    return { offset: BigInt(position), size: BigInt(bytes.byteLength) };
  }
}

/** Operator codes in order of first use, each once. */
class OperatorCodes {
  readonly table: TableValue<'OperatorCode'>[] = [];
  readonly #indices = new Map<string, number>();

  index(operator: TfliteOperator): number {
    const key = JSON.stringify([operator.code, operator.version, operator.customCode ?? null]);
    let index = this.#indices.get(key);
    if (index === undefined) {
      index = this.table.length;
      this.#indices.set(key, index);
      this.table.push({
        builtinCode: operator.code,
        // The old 8-bit field: readers that know only it see the placeholder 127 for newer operators.
        deprecatedBuiltinCode: Math.min(operator.code, 127),
        version: operator.version,
        customCode: operator.customCode,
      });
    }
    return index;
  }
}

function rawTensor(tensor: TfliteTensor): TableValue<'Tensor'> {
  const { quantization } = tensor;
  const scales = quantization?.scale?.length ?? 0;
  const zeroPoints = quantization?.zeroPoint?.length ?? 0;
  // One zero point for many scales is a shorthand that readers accept.
  if (scales !== zeroPoints && zeroPoints > 1) {
    throw new NpucError('TF103', {
      message: `${scales} scales and ${zeroPoints} zero points`,
      where: `tensor ${tensor.name}`,
    });
  }
  return {
    name: tensor.name,
    type: tensor.type,
    shape: tensor.shape,
    shapeSignature: tensor.shapeSignature,
    buffer: tensor.buffer,
    hasRank: tensor.hasRank ?? true,
    isVariable: tensor.isVariable,
    quantization: quantization && {
      ...quantization,
      zeroPoint: quantization.zeroPoint && Array.from(quantization.zeroPoint, toBigInt),
    },
    sparsity: tensor.sparsity,
    variantTensors: tensor.variantTensors,
    externalBuffer: tensor.externalBuffer,
  };
}

function toBigInt(value: number): bigint {
  if (!Number.isSafeInteger(value)) throw new NpucError('TF103', { message: `a zero point is ${value}` });
  return BigInt(value);
}

function rawOperator(operator: TfliteOperator, codes: OperatorCodes, places: Places): TableValue<'Operator'> {
  if ((operator.customCode !== undefined) !== (operatorName(operator.code) === 'CUSTOM')) {
    throw new NpucError('TF103', {
      message: `${operatorName(operator.code)} with the custom code ${operator.customCode ?? '(none)'}`,
    });
  }
  const large = operator.largeCustomOptions && places.place(operator.largeCustomOptions);
  return {
    opcodeIndex: codes.index(operator),
    inputs: operator.inputs,
    outputs: operator.outputs,
    builtinOptions: operator.options,
    builtinOptions2: operator.options2,
    customOptions: operator.customOptions,
    customOptionsFormat: operator.customOptionsFormat,
    largeCustomOptionsOffset: large?.offset,
    largeCustomOptionsSize: large?.size,
    mutatingVariableInputs: operator.mutatingVariableInputs,
    intermediates: operator.intermediates,
    debugMetadataIndex: operator.debugMetadataIndex,
  };
}
