// CPU time of every kernel, WebAssembly against its plain twin, interleaved in one run.
// npm run -s build && node bench/kernels.bench.mjs [rounds]
// Rates are GB of f32 (or of what the kernel reads) per CPU second, one thread, copies into the instance included.
import {
  createChannelStatistics,
  createDifferenceSums,
  createHistogram,
  INT4,
  INT8_SYMMETRIC,
  plainKernels,
  wasmKernels,
} from '../dist/compiler/kernels/index.js';

const rounds = Number(process.argv[2] ?? 5);
const rows = 1024;
const columns = 2048;
const count = rows * columns;

let state = 1;
const uniform = () => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return (state + 0.5) / 2 ** 32;
};
const weights = Float32Array.from({ length: count }, () => {
  return 0.02 * Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
});
const other = weights.map((value) => value + 1e-4);
const importance = Float32Array.from({ length: columns }, () => uniform());
const halves = new Uint8Array(count * 2);
wasmKernels.encodeF16(weights, halves);
const target = new Float32Array(count);
const integers = new Int8Array(count);
const turned = new Int8Array(count);
const packed = new Uint8Array(count / 2);
const packedTarget = new Uint8Array(count / 2);
const perRow = { rows, columns, block: columns };
const perBlock = { rows, columns, block: 32 };
const scalesOf = (layout, range) => wasmKernels.findAbsmax(weights, layout).map((absmax) => absmax / range.max);
const rowScales = scalesOf(perRow, INT8_SYMMETRIC);
const blockScales = scalesOf(perBlock, INT4);
wasmKernels.quantizeI8(weights, perBlock, blockScales, INT4, integers);
wasmKernels.packI4(integers, packed);

// The searches are slow in plain TypeScript: a slice is enough for a rate.
const few = { rows: 64, columns };
const fewWeights = weights.subarray(0, few.rows * columns);
const searched = fewWeights.byteLength;
const activation = { scale: 1e-5, zeroPoint: 30000, min: 0, max: 65535 };

/** [name, bytes read, run(kernels)] */
const cases = [
  ['bf16 to f32', count * 2, (k) => k.decodeBf16(halves, target)],
  ['f16 to f32', count * 2, (k) => k.decodeF16(halves, target)],
  ['f32 to f16', count * 4, (k) => k.encodeF16(weights, halves)],
  ['absmax per row', count * 4, (k) => k.findAbsmax(weights, perRow)],
  ['absmax block 32', count * 4, (k) => k.findAbsmax(weights, perBlock)],
  ['min-max per row', count * 4, (k) => k.findMinMax(weights, perRow)],
  ['range of an array', count * 4, (k) => k.findRange(weights)],
  ['channel statistics', count * 4, (k) => k.accumulateChannels(weights, createChannelStatistics(columns))],
  ['histogram, 2048 bins', count * 4, (k) => k.accumulateHistogram(weights, createHistogram(-0.1, 0.1))],
  ['difference sums', count * 8, (k) => k.accumulateDifference(weights, other, createDifferenceSums())],
  ['f32 to i8 per row', count * 4, (k) => k.quantizeI8(weights, perRow, rowScales, INT8_SYMMETRIC, integers)],
  ['f32 to packed int4, block 32', count * 4, (k) => k.quantizeI4(weights, perBlock, blockScales, INT4, packed)],
  ['int4 unpack', count / 2, (k) => k.unpackI4(packed, integers)],
  ['int4 pack', count, (k) => k.packI4(integers, packed), (k) => k.unpackI4(packed, integers)],
  ['i8 to f32 per row', count, (k) => k.dequantizeI8(integers, perRow, rowScales, target)],
  ['packed int4 to f32, block 32', count / 2, (k) => k.dequantizeI4(packed, perBlock, blockScales, target)],
  [
    'fake quantization, block 32',
    count * 4,
    (k) => k.fakeQuantizeWeights(weights, perBlock, blockScales, INT4, target),
  ],
  ['fake quantization, u16', count * 4, (k) => k.fakeQuantizeActivations(weights, activation, target)],
  ['transpose f32', count * 4, (k) => k.transposeF32(weights, rows, columns, target)],
  ['transpose i8', count, (k) => k.transposeI8(integers, rows, columns, turned)],
  ['transpose packed int4', count / 2, (k) => k.transposeI4(packed, rows, columns, packedTarget)],
  ...[
    ['scale search int4 per row', columns, INT4],
    ['scale search int4, block 32', 32, INT4],
    ['scale search i8 per row', columns, INT8_SYMMETRIC],
  ].map(([name, block, range]) => [
    name,
    searched,
    (k) => k.searchScales(fewWeights, { ...few, block }, { range, importance }),
  ]),
  ...[16, 32, 64].map((block) => [
    `two-level search, block ${block}`,
    searched,
    (k) => k.searchLpbq(fewWeights, { ...few, block }, { range: INT4, importance }),
  ]),
];

/** CPU seconds of one call, repeated until the sum is worth measuring. */
function cpuSeconds(run, kernels) {
  let calls = 0;
  const start = process.cpuUsage();
  let used = 0;
  do {
    run(kernels);
    calls++;
    const { user, system } = process.cpuUsage(start);
    used = (user + system) / 1e6;
  } while (used < 0.05);
  return used / calls;
}

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

console.log('| kernel | WASM / plain | GB/s WASM | GB/s plain |');
console.log('|---|---|---|---|');
for (const [name, bytes, run, prepare] of cases) {
  const times = { wasm: [], plain: [] };
  for (let round = 0; round <= rounds; round++) {
    prepare?.(wasmKernels);
    const wasm = cpuSeconds(run, wasmKernels);
    const plain = cpuSeconds(run, plainKernels);
    if (round === 0) continue; // compilation
    times.wasm.push(wasm);
    times.plain.push(plain);
  }
  const wasm = bytes / median(times.wasm) / 1e9;
  const plain = bytes / median(times.plain) / 1e9;
  console.log(`| ${name} | ${(wasm / plain).toFixed(1)} | ${wasm.toPrecision(3)} | ${plain.toPrecision(3)} |`);
}
