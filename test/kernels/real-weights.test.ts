import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import {
  expandTwoLevelScales,
  INT4,
  type Layout,
  plainKernels,
  splitBlockScales,
  wasmKernels,
} from '../../compiler/kernels/index.ts';
import { hasMaterial, materialPath } from '../material.ts';
import { bitsOf } from './arbitraries.ts';

interface Header {
  [name: string]: { dtype: string; shape: number[]; data_offsets: [number, number] };
}

/** The linear layers of stories260k whose input channels are a multiple of 32. */
function linearLayers(): { weights: Float32Array; layout: Layout }[] {
  const file = readFileSync(materialPath('stories260k', 'hf', 'model.safetensors'));
  const headerBytes = Number(file.readBigUInt64LE(0));
  const { __metadata__, ...header } = JSON.parse(file.toString('utf8', 8, 8 + headerBytes)) as Header;
  expect(__metadata__).toBeDefined();
  const start = 8 + headerBytes;
  return Object.entries(header).flatMap(
    ([
      name,
      {
        dtype,
        shape,
        data_offsets: [from, to],
      },
    ]) => {
      if (!name.endsWith('proj.weight') || shape[1] % 32 !== 0) return [];
      expect(dtype).toBe('F32');
      const bytes = Uint8Array.from(file.subarray(start + from, start + to));
      const layout = { rows: shape[0], columns: shape[1], block: 32, name };
      return [{ weights: new Float32Array(bytes.buffer), layout }];
    },
  );
}

const total = (errors: Float64Array): number => errors.reduce((a, b) => a + b, 0);

describe.skipIf(!hasMaterial)('scale search on the weights of stories260k', () => {
  it('takes a fifth off the squared error of absmax scales; two levels cost next to nothing over free block scales', () => {
    const layers = linearLayers();
    expect(layers.length).toBe(30);
    const sums = { absmax: 0, absmaxTwoLevel: 0, free: 0, roundedFree: 0, twoLevel: 0 };
    for (const { weights, layout } of layers) {
      const search = { range: INT4 };
      const measure = (scales: Float32Array): number =>
        total(wasmKernels.measureErrors(weights, layout, scales, search));
      const round = (scales: Float32Array): Float32Array => expandTwoLevelScales(splitBlockScales(scales, layout));
      const absmax = wasmKernels.findAbsmax(weights, layout).map((value) => value / 7);
      const free = wasmKernels.searchScales(weights, layout, search);
      const twoLevel = wasmKernels.searchLpbq(weights, layout, search);
      const twin = plainKernels.searchLpbq(weights, layout, search);
      expect(bitsOf(twoLevel.channelScales)).toEqual(bitsOf(twin.channelScales));
      expect(twoLevel.blockScales).toEqual(twin.blockScales);
      sums.absmax += measure(absmax);
      sums.absmaxTwoLevel += measure(round(absmax));
      sums.free += total(free.errors);
      sums.roundedFree += measure(round(free.scales));
      sums.twoLevel += total(twoLevel.errors);
    }
    expect(sums.free / sums.absmax).toBeLessThan(0.79);
    expect(sums.twoLevel / sums.absmaxTwoLevel).toBeLessThan(0.79);
    expect(sums.twoLevel).toBeLessThan(sums.roundedFree);
    expect(sums.twoLevel / sums.free).toBeLessThan(1.006);
  });
});
