import { SAFETENSORS_DTYPES } from '../import/safetensors.ts';
import { byteLengthOf, type DType } from '../ir/dtype.ts';
import { elementCount } from '../ir/tensor.ts';
import { writeAtomically } from './atomic-files.ts';

/** A tensor to be written: its bytes come in pieces, computed one after the other. */
export interface StreamedTensor {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly pieces: () => Iterable<Uint8Array>;
}

const ALIGNMENT = 8;

/**
 * Writes a .safetensors file: u64 length of the header, the header as JSON padded with spaces to 8 bytes, then the tensors
 * one after the other in the order given, little endian (README of huggingface/safetensors). One piece is in memory at a time.
 * `format: pt` in the metadata is what transformers asks for before it loads a file.
 * @throws IO002; XX001 when the pieces of a tensor are not as long as its shape says
 */
export function writeSafetensors(path: string, tensors: readonly StreamedTensor[]): void {
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } };
  let offset = 0;
  for (const { name, dtype, shape } of tensors) {
    const end = offset + byteLengthOf(dtype, elementCount(shape));
    header[name] = { dtype: SAFETENSORS_DTYPES.get(dtype), shape, data_offsets: [offset, end] };
    offset = end;
  }
  const text = JSON.stringify(header);
  const bytes = Buffer.from(text + ' '.repeat((ALIGNMENT - (Buffer.byteLength(text) % ALIGNMENT)) % ALIGNMENT));
  writeAtomically([path], ([sink]) => {
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(bytes.length));
    sink!.write(length);
    sink!.write(bytes);
    for (const { name, dtype, shape, pieces } of tensors) {
      const end = sink!.position + byteLengthOf(dtype, elementCount(shape));
      for (const piece of pieces()) sink!.write(piece);
      if (sink!.position !== end) throw new Error(`${name} ends at byte ${sink!.position}, not ${end}`);
    }
  });
}
