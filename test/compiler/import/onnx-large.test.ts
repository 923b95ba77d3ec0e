import { execFileSync } from 'node:child_process';
import { closeSync, existsSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { afterAll, describe, expect, it } from 'vitest';
import { encodeMessage } from '../../../compiler/export/protobuf.ts';
import { openOnnx } from '../../../compiler/import/onnx.ts';
import { MODEL } from '../../../compiler/import/onnx-schema.ts';

const folder = mkdtempSync(join(tmpdir(), 'npuc-onnx-large-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const ELEMENTS = 3 * 2 ** 28;
const MARKER = Buffer.from('the last bytes!!');

/** A model of a little more than 3 GiB in one file; the weights are a hole in the file, but for their last 16 bytes. */
function writeSparseModel(path: string): number {
  const weights = { byteLength: ELEMENTS * 4, read: () => new Uint8Array(0) };
  const writer = encodeMessage(MODEL, {
    irVersion: 8,
    opsets: [{ version: 17 }],
    graph: {
      name: 'large',
      nodes: [{ op: 'Identity', inputs: ['w'], outputs: ['y'] }],
      initializers: [{ name: 'w', dims: [3, 2 ** 28], dataType: 1, rawData: weights }],
      outputs: [{ name: 'y' }],
    },
  });
  const descriptor = openSync(path, 'w');
  let at = 0;
  for (const piece of writer.pieces) {
    if (piece instanceof Uint8Array) writeSync(descriptor, piece, 0, piece.length, at);
    else writeSync(descriptor, MARKER, 0, MARKER.length, at + piece.byteLength - MARKER.length);
    at += piece.byteLength;
  }
  ftruncateSync(descriptor, at);
  closeSync(descriptor);
  return at;
}

describe('a model of 3 GiB in one file', () => {
  const path = join(folder, 'large.onnx');
  const size = writeSparseModel(path);

  it('opens, and its tensors are read in ranges', () => {
    expect(size).toBeGreaterThan(3 * 2 ** 30);
    const module = openOnnx(path);
    const data = module.graph().find('w')!.data!;
    expect(data.shape).toEqual([3, 2 ** 28]);
    expect(module.graph().outputs[0]!.name).toBe('y');
    expect(Buffer.from(data.readRange(data.byteLength - 16, 16)).toString()).toBe(MARKER.toString());
    expect([...data.readRange(2 ** 31, 4)]).toEqual([0, 0, 0, 0]);
  });

  it('opens in less than a second and 100 MB', () => {
    const entry = fileURLToPath(new URL('../../../dist/compiler/import/onnx.js', import.meta.url));
    if (!existsSync(entry)) throw new Error('run `npm run build` first: this test measures a process of its own');
    const script = `
      import { openOnnx } from ${JSON.stringify(pathToFileURL(entry).href)};
      const start = performance.now();
      const graph = openOnnx(${JSON.stringify(path)}).graph();
      const milliseconds = performance.now() - start;
      console.log(JSON.stringify({ milliseconds, kilobytes: process.resourceUsage().maxRSS, nodes: graph.nodes.length }));`;
    const output = execFileSync(process.execPath, ['--input-type=module', '--eval', script], { encoding: 'utf8' });
    const { milliseconds, kilobytes, nodes } = JSON.parse(output);
    expect(nodes).toBe(1);
    expect(milliseconds).toBeLessThan(1000);
    expect(kilobytes).toBeLessThan(100 << 10);
  });
});
