import { NpucError } from '../../compiler/errors.ts';
import { type ByteSource, MemorySource, SourceBytes } from './byte-source.ts';
import { readFlatBuffer } from './flatbuffer-reader.ts';
import {
  checkIndices,
  type TfliteModel,
  type TfliteOperator,
  type TflitePort,
  type TfliteQuantization,
  type TfliteSubgraph,
  type TfliteTensor,
} from './model.ts';
import type { BufferBytes, TableValue } from './schema.ts';
import { isKnownOperator, type TensorTypeCode } from './schema-enums.ts';

/**
 * Reads a TFLite file. Only the tables are read; each buffer becomes a range of the source (`SourceBytes`), so a source
 * that is a file must stay open as long as the model's buffers are used.
 * @param source a `FileSource`, or the whole file in memory
 * @param where the file's name for errors
 * @param options `unchecked` leaves indices as they are, for a file that a vendor's tool left unfinished
 * @throws IO003 when the file is damaged, truncated or lies; TF105 when it needs a newer schema
 */
export function readTflite(
  source: ByteSource | Uint8Array,
  where?: string,
  { unchecked = false }: { readonly unchecked?: boolean } = {},
): TfliteModel {
  const bytes = source instanceof Uint8Array ? new MemorySource(source) : source;
  try {
    const model = new ModelReader(bytes, readFlatBuffer(bytes, 'Model')).model();
    if (!unchecked) checkIndices(model, 'IO003');
    return model;
  } catch (error) {
    if (!(error instanceof NpucError)) throw error;
    throw new NpucError(error.code, {
      message: error.message,
      where: where ?? error.where,
      hint: error.hint ?? 'the file is damaged or is no TFLite model; download or convert it again',
      cause: error.cause,
    });
  }
}

class ModelReader {
  readonly #source: ByteSource;
  readonly #raw: TableValue<'Model'>;

  constructor(source: ByteSource, raw: TableValue<'Model'>) {
    this.#source = source;
    this.#raw = raw;
  }

  model(): TfliteModel {
    const raw = this.#raw;
    return present({
      version: raw.version ?? 0,
      description: raw.description,
      subgraphs: (raw.subgraphs ?? []).map((graph) => this.#subgraph(graph)),
      buffers: (raw.buffers ?? []).map((buffer, i) => this.#buffer(buffer, `buffer ${i}`)),
      signatures: (raw.signatureDefs ?? []).map((signature) => ({
        key: signature.signatureKey ?? '',
        subgraph: signature.subgraphIndex ?? 0,
        inputs: ports(signature.inputs),
        outputs: ports(signature.outputs),
      })),
      metadata: (raw.metadata ?? []).map((entry) => ({ name: entry.name ?? '', buffer: entry.buffer ?? 0 })),
      metadataBuffer: raw.metadataBuffer,
      externalBufferGroups: raw.externalBufferGroups,
      externalBuffers: raw.externalBuffers,
    });
  }

  #subgraph(raw: TableValue<'SubGraph'>): TfliteSubgraph {
    return present({
      name: raw.name,
      tensors: (raw.tensors ?? []).map((tensor) => this.#tensor(tensor)),
      inputs: numbers(raw.inputs),
      outputs: numbers(raw.outputs),
      operators: (raw.operators ?? []).map((operator) => this.#operator(operator)),
      debugMetadataIndex: otherThan(-1, raw.debugMetadataIndex),
    });
  }

  #tensor(raw: TableValue<'Tensor'>): TfliteTensor {
    return present({
      name: raw.name ?? '',
      type: (raw.type ?? 0) as TensorTypeCode,
      shape: numbers(raw.shape),
      shapeSignature: raw.shapeSignature && numbers(raw.shapeSignature),
      buffer: raw.buffer ?? 0,
      hasRank: raw.hasRank,
      isVariable: raw.isVariable,
      quantization: raw.quantization && this.#quantization(raw.quantization),
      sparsity: raw.sparsity,
      variantTensors: raw.variantTensors,
      externalBuffer: otherThan(0, raw.externalBuffer),
    });
  }

  #quantization(raw: TableValue<'QuantizationParameters'>): TfliteQuantization {
    return present({
      min: raw.min,
      max: raw.max,
      scale: raw.scale,
      zeroPoint:
        raw.zeroPoint &&
        Float64Array.from(raw.zeroPoint as BigInt64Array, (zero) => this.#number(zero, 'a zero point')),
      quantizedDimension: otherThan(0, raw.quantizedDimension),
      details: raw.details,
    });
  }

  #operator(raw: TableValue<'Operator'>): TfliteOperator {
    const code = this.#raw.operatorCodes?.[raw.opcodeIndex ?? 0];
    if (!code)
      throw malformed(`an operator has the code ${raw.opcodeIndex} of ${this.#raw.operatorCodes?.length ?? 0}`);
    const size = this.#number(raw.largeCustomOptionsSize ?? 0n, 'the size of custom options');
    const offset = this.#number(raw.largeCustomOptionsOffset ?? 0n, 'the offset of custom options');
    // Writers older than the 32-bit field know only the 8-bit one; newer ones write 127 there for what it cannot hold.
    const builtin = Math.max(code.builtinCode ?? 0, code.deprecatedBuiltinCode ?? 0);
    if (!isKnownOperator(builtin)) {
      throw new NpucError('TF105', {
        message: `an operator has the code ${builtin}, which this schema does not know`,
        hint: 'the file was written for a newer LiteRT than this tool knows, or is damaged',
      });
    }
    return present({
      code: builtin,
      version: code.version ?? 1,
      customCode: code.customCode,
      inputs: numbers(raw.inputs),
      outputs: numbers(raw.outputs),
      options: raw.builtinOptions,
      options2: raw.builtinOptions2,
      customOptions: raw.customOptions,
      customOptionsFormat: otherThan(0, raw.customOptionsFormat),
      largeCustomOptions: size === 0 ? undefined : this.#range(offset, size, 'custom options'),
      mutatingVariableInputs: raw.mutatingVariableInputs,
      intermediates: raw.intermediates && numbers(raw.intermediates),
      debugMetadataIndex: otherThan(-1, raw.debugMetadataIndex),
    });
  }

  #buffer(raw: TableValue<'Buffer'>, what: string): BufferBytes | undefined {
    const size = this.#number(raw.size ?? 0n, `the size of ${what}`);
    const offset = this.#number(raw.offset ?? 0n, `the offset of ${what}`);
    // Offset 0 or 1 means that the data is in the FlatBuffer; 1 is what a writer leaves before it knows the place.
    if (offset > 1) return this.#range(offset, size, what);
    return raw.data;
  }

  #range(offset: number, size: number, what: string): SourceBytes {
    if (offset + size > this.#source.size) {
      throw malformed(`${what} is bytes ${offset}..${offset + size} of a file of ${this.#source.size}`);
    }
    return new SourceBytes(this.#source, offset, size);
  }

  #number(value: bigint, what: string): number {
    const number = Number(value);
    if (!Number.isSafeInteger(number)) throw malformed(`${what} is ${value}`);
    return number;
  }
}

function malformed(message: string): NpucError {
  return new NpucError('IO003', { message });
}

function ports(raw: readonly TableValue<'TensorMap'>[] | undefined): TflitePort[] {
  return (raw ?? []).map((entry) => ({ name: entry.name ?? '', tensor: entry.tensorIndex ?? 0 }));
}

function numbers(values: ArrayLike<number> | undefined): number[] {
  return Array.from(values ?? []);
}

function otherThan(absent: number, value: number | undefined): number | undefined {
  return value === absent ? undefined : value;
}

/** The object without its undefined fields. */
function present<T extends object>(object: { [K in keyof T]: T[K] | undefined }): T {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined)) as T;
}
