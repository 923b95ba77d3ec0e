// Compiles the AssemblyScript kernels and writes the bytes, as base64, into wasm-bytes.ts.
// node compiler/kernels/build.mjs            writes
// node compiler/kernels/build.mjs --check    exits 1 if the committed bytes differ from what the sources give
import { readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import asc from 'assemblyscript/asc';

const folder = dirname(fileURLToPath(import.meta.url));
const target = join(folder, 'wasm-bytes.ts');

/** The WebAssembly module of assembly/index.ts: baseline SIMD, no relaxed SIMD, no garbage collector. */
async function compile() {
  let bytes;
  const { error, stderr } = await asc.main(
    ['assembly/index.ts', '--outFile', 'kernels.wasm', '--baseDir', folder]
      .concat(['--runtime', 'stub', '--enable', 'simd', '-O3', '--noAssert'])
      .concat(['--initialMemory', '1']),
    {
      writeFile: (name, contents) => {
        if (name === 'kernels.wasm') bytes = Buffer.from(contents);
      },
    },
  );
  if (error || !bytes) throw new Error(`${error?.message}\n${stderr.toString()}`);
  return bytes;
}

const bytes = await compile();
const text = `// Written by \`node compiler/kernels/build.mjs\`: do not edit. ${bytes.length} bytes of WebAssembly, in base64.
export const WASM_BASE64 =
  '${bytes.toString('base64')}';
`;
if (process.argv.includes('--check')) {
  if (readFileSync(target, 'utf8') !== text) {
    console.error('wasm-bytes.ts differs from its sources: run node compiler/kernels/build.mjs');
    process.exitCode = 1;
  }
} else {
  writeFileSync(target, text);
  console.error(`wrote ${bytes.length} bytes of WebAssembly`);
}
