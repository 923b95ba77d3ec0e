import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import { WASM_BASE64 } from '../../compiler/kernels/wasm-bytes.ts';

const build = fileURLToPath(new URL('../../compiler/kernels/build.mjs', import.meta.url));

describe('the committed WebAssembly', () => {
  it('is what the AssemblyScript sources compile to', async () => {
    await promisify(execFile)(process.execPath, [build, '--check']);
  });

  it('is a module without imports, small enough to compile at once', () => {
    const bytes = Buffer.from(WASM_BASE64, 'base64');
    expect(bytes.subarray(0, 8)).toEqual(Buffer.from([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0]));
    expect(bytes.length).toBeLessThan(32 * 1024);
    // Section 2 is the import section; sections come in order, the type section (1) first.
    const typeBytes = bytes[9] & 0x80 ? (bytes[9] & 0x7f) | (bytes[10] << 7) : bytes[9];
    expect(bytes[8]).toBe(1);
    expect(bytes[(bytes[9] & 0x80 ? 11 : 10) + typeBytes]).toBe(3);
  });
});
