import type { BufferBytes } from '../schema.ts';

/** All bytes of a buffer in memory. */
export function readBuffer(source: BufferBytes): Uint8Array {
  if (source instanceof Uint8Array) return source;
  const bytes = new Uint8Array(source.byteLength);
  let position = 0;
  source.write((chunk) => {
    bytes.set(chunk, position);
    position += chunk.byteLength;
  });
  return bytes;
}
