import {
  checkHistogram,
  checkImportance,
  checkLayout,
  checkLength,
  checkRange,
  checkScales,
  notPositive,
  outsideInt4,
  refuseNonFinite,
} from './check.ts';
import { type Engine, INFINITE_BITS } from './engine.ts';
import type { Kernels, Layout, LpbqSearch, ScaleSearch, SearchOptions } from './kernels.ts';
import { createTransposes } from './transpose.ts';
import { groupWindows, rowWindows } from './windows.ts';

/** Pairs of values that one f64 sum covers before it is added to the total: part of the result, so never tuned. */
const DIFFERENCE_SPAN = 1 << 16;

/**
 * Adds argument checks and windows to an engine: only `windowBytes` of a tensor (a whole row at least, where rows must
 * stay whole) are inside the engine at a time. Results do not depend on windowBytes.
 */
export function createKernels(engine: Engine, windowBytes = 1 << 20): Kernels {
  const perWindow = Math.max(32, windowBytes >> 3);

  /** Calls run with from..to over `length` values, steps a multiple of 32. */
  const eachWindow = (length: number, run: (from: number, to: number) => void): void => {
    const step = perWindow & ~31;
    for (let from = 0; from < length; from += step) run(from, Math.min(length, from + step));
  };

  const searchInputs = (weights: Float32Array, layout: Layout, search: SearchOptions): Float32Array => {
    checkLayout(layout, weights.length);
    checkRange(search.range);
    const importance = search.importance ?? new Float32Array(layout.columns).fill(1);
    checkImportance(importance, layout);
    return importance;
  };

  const kernels: Kernels = {
    decodeBf16(source, target) {
      checkLength('source bytes', source.length, target.length * 2);
      eachWindow(target.length, (from, to) =>
        engine.decodeBf16(source.subarray(2 * from, 2 * to), target.subarray(from, to)),
      );
    },
    decodeF16(source, target) {
      checkLength('source bytes', source.length, target.length * 2);
      eachWindow(target.length, (from, to) =>
        engine.decodeF16(source.subarray(2 * from, 2 * to), target.subarray(from, to)),
      );
    },
    encodeF16(source, target) {
      checkLength('target bytes', target.length, source.length * 2);
      eachWindow(source.length, (from, to) =>
        engine.encodeF16(source.subarray(from, to), target.subarray(2 * from, 2 * to)),
      );
    },

    findAbsmax(weights, layout) {
      checkLayout(layout, weights.length);
      const absmax = new Float32Array(weights.length / layout.block);
      for (const w of groupWindows(layout, perWindow)) {
        const part = new Float32Array(w.groupEnd - w.groupStart);
        const bits = engine.absmax(weights.subarray(w.start, w.end), w.group, part);
        if (bits >= INFINITE_BITS) refuseNonFinite(weights, w.start, w.end, layout);
        part.forEach((value, i) => {
          absmax[w.groupStart + i] = Math.max(absmax[w.groupStart + i], value);
        });
      }
      return absmax;
    },
    findMinMax(weights, layout) {
      checkLayout(layout, weights.length);
      const groups = weights.length / layout.block;
      const min = new Float32Array(groups).fill(Infinity);
      const max = new Float32Array(groups).fill(-Infinity);
      for (const w of groupWindows(layout, perWindow)) {
        const minima = new Float32Array(w.groupEnd - w.groupStart);
        const maxima = new Float32Array(w.groupEnd - w.groupStart);
        const bits = engine.minMax(weights.subarray(w.start, w.end), w.group, minima, maxima);
        if (bits >= INFINITE_BITS) refuseNonFinite(weights, w.start, w.end, layout);
        for (let i = 0; i < minima.length; i++) {
          min[w.groupStart + i] = Math.min(min[w.groupStart + i], minima[i]);
          max[w.groupStart + i] = Math.max(max[w.groupStart + i], maxima[i]);
        }
      }
      return { min, max };
    },
    findRange(values) {
      let min = Infinity;
      let max = -Infinity;
      let skipped = 0;
      eachWindow(values.length, (from, to) => {
        const part = engine.finiteRange(values.subarray(from, to));
        min = Math.min(min, part.min);
        max = Math.max(max, part.max);
        skipped += part.skipped;
      });
      return { min, max, skipped };
    },
    accumulateChannels(activations, statistics) {
      const { absmax, sumSquares } = statistics;
      const layout = { rows: activations.length / absmax.length, columns: absmax.length, block: absmax.length };
      checkLayout(layout, activations.length);
      for (const w of rowWindows(layout, 12 * layout.columns, windowBytes)) {
        const start = w.rowStart * layout.columns;
        const end = w.rowEnd * layout.columns;
        const bits = engine.channelStatistics(activations.subarray(start, end), absmax, sumSquares);
        if (bits >= INFINITE_BITS) refuseNonFinite(activations, start, end, layout);
      }
      statistics.tokens += layout.rows;
    },
    accumulateHistogram(values, histogram) {
      const { min, max } = histogram;
      checkHistogram(histogram);
      const perUnit = Math.fround(histogram.counts.length / (max - min));
      const counts = new Float64Array(histogram.counts.length + 1);
      eachWindow(values.length, (from, to) => engine.histogram(values.subarray(from, to), min, perUnit, counts));
      histogram.counts.forEach((count, i) => {
        histogram.counts[i] = count + counts[i];
      });
      histogram.skipped += counts[counts.length - 1];
    },
    accumulateDifference(reference, other, sums) {
      checkLength('other', other.length, reference.length);
      const part = new Float64Array(5);
      for (let from = 0; from < reference.length; from += DIFFERENCE_SPAN) {
        const to = Math.min(reference.length, from + DIFFERENCE_SPAN);
        sums.skipped += engine.difference(reference.subarray(from, to), other.subarray(from, to), part);
        sums.count += to - from;
        sums.reference2 += part[0];
        sums.other2 += part[1];
        sums.product += part[2];
        sums.difference2 += part[3];
        sums.maxDifference = Math.max(sums.maxDifference, part[4]);
      }
    },

    quantizeI8(weights, layout, scales, range, target) {
      checkLayout(layout, weights.length);
      checkRange(range);
      checkScales(scales, layout);
      checkLength('target', target.length, weights.length);
      for (const w of groupWindows(layout, perWindow)) {
        const part = weights.subarray(w.start, w.end);
        const partScales = scales.subarray(w.groupStart, w.groupEnd);
        const bits = engine.quantizeI8(part, w.group, partScales, range, target.subarray(w.start, w.end));
        if (bits >= INFINITE_BITS) refuseNonFinite(weights, w.start, w.end, layout);
      }
    },
    quantizeI4(weights, layout, scales, range, target) {
      checkLayout(layout, weights.length);
      checkRange(range);
      checkScales(scales, layout);
      checkLength('target bytes', target.length, Math.ceil(weights.length / 2));
      if (range.min < -8 || range.max > 7) throw outsideInt4(`range ${range.min}..${range.max}`);
      for (const w of groupWindows(layout, perWindow, 2)) {
        const part = weights.subarray(w.start, w.end);
        const partScales = scales.subarray(w.groupStart, w.groupEnd);
        const packed = target.subarray(w.start / 2, Math.ceil(w.end / 2));
        const bits = engine.quantizeI4(part, w.group, partScales, range, packed);
        if (bits >= INFINITE_BITS) refuseNonFinite(weights, w.start, w.end, layout);
      }
    },
    packI4(source, target) {
      checkLength('target bytes', target.length, Math.ceil(source.length / 2));
      eachWindow(source.length, (from, to) => {
        if (engine.packI4(source.subarray(from, to), target.subarray(from / 2, Math.ceil(to / 2)))) return;
        const at = source.subarray(from, to).findIndex((value) => value < -8 || value > 7);
        throw outsideInt4(`${source[from + at]} at index ${from + at}`);
      });
    },
    unpackI4(source, target) {
      checkLength('source bytes', source.length, Math.ceil(target.length / 2));
      eachWindow(target.length, (from, to) =>
        engine.unpackI4(source.subarray(from / 2, Math.ceil(to / 2)), target.subarray(from, to)),
      );
    },
    dequantizeI8(source, layout, scales, target) {
      checkLayout(layout, target.length);
      checkScales(scales, layout);
      checkLength('source', source.length, target.length);
      for (const w of groupWindows(layout, perWindow)) {
        const partScales = scales.subarray(w.groupStart, w.groupEnd);
        engine.dequantizeI8(source.subarray(w.start, w.end), w.group, partScales, target.subarray(w.start, w.end));
      }
    },
    dequantizeI4(source, layout, scales, target) {
      checkLayout(layout, target.length);
      checkScales(scales, layout);
      checkLength('source bytes', source.length, Math.ceil(target.length / 2));
      for (const w of groupWindows(layout, perWindow, 2)) {
        const packed = source.subarray(w.start / 2, Math.ceil(w.end / 2));
        const partScales = scales.subarray(w.groupStart, w.groupEnd);
        engine.dequantizeI4(packed, w.group, partScales, target.subarray(w.start, w.end));
      }
    },
    fakeQuantizeWeights(weights, layout, scales, range, target) {
      checkLayout(layout, weights.length);
      checkRange(range);
      checkScales(scales, layout);
      checkLength('target', target.length, weights.length);
      for (const w of groupWindows(layout, perWindow)) {
        const part = weights.subarray(w.start, w.end);
        const partScales = scales.subarray(w.groupStart, w.groupEnd);
        const bits = engine.fakeQuantize(part, w.group, partScales, range, target.subarray(w.start, w.end));
        if (bits >= INFINITE_BITS) refuseNonFinite(weights, w.start, w.end, layout);
      }
    },
    fakeQuantizeActivations(values, encoding, target) {
      checkScales(Float32Array.of(encoding.scale), { rows: 1, columns: 1, block: 1 });
      checkLength('target', target.length, values.length);
      const min = encoding.min - encoding.zeroPoint;
      const max = encoding.max - encoding.zeroPoint;
      eachWindow(values.length, (from, to) =>
        engine.fakeQuantizeAffine(values.subarray(from, to), encoding.scale, min, max, target.subarray(from, to)),
      );
    },

    measureErrors(weights, layout, scales, search) {
      const importance = searchInputs(weights, layout, search);
      checkScales(scales, layout);
      const errors = new Float64Array(scales.length);
      for (const w of rowWindows(layout, 4 * layout.columns, windowBytes)) {
        const part = weights.subarray(w.rowStart * layout.columns, w.rowEnd * layout.columns);
        engine.weightedErrors(
          part,
          importance,
          layout.block,
          scales.subarray(w.groupStart, w.groupEnd),
          search.range,
          errors.subarray(w.groupStart, w.groupEnd),
        );
      }
      if (!errors.every(Number.isFinite)) kernels.findAbsmax(weights, layout);
      return errors;
    },
    searchScales(weights, layout, search): ScaleSearch {
      const importance = searchInputs(weights, layout, search);
      kernels.findAbsmax(weights, layout);
      const scales = new Float32Array(weights.length / layout.block);
      const errors = new Float64Array(scales.length);
      for (const w of rowWindows(layout, 4 * layout.columns, windowBytes)) {
        engine.searchScales(
          weights.subarray(w.rowStart * layout.columns, w.rowEnd * layout.columns),
          importance,
          layout.block,
          search.range,
          scales.subarray(w.groupStart, w.groupEnd),
          errors.subarray(w.groupStart, w.groupEnd),
        );
      }
      return { scales, errors };
    },
    searchLpbq(weights, layout, search): LpbqSearch {
      const importance = searchInputs(weights, layout, search);
      kernels.findAbsmax(weights, layout);
      const channelScales = new Float32Array(layout.rows);
      const blockScales = new Uint8Array(weights.length / layout.block);
      const errors = new Float64Array(layout.rows);
      for (const w of rowWindows(layout, 4 * layout.columns, windowBytes)) {
        engine.searchLpbq(
          weights.subarray(w.rowStart * layout.columns, w.rowEnd * layout.columns),
          importance,
          layout.block,
          search.range,
          channelScales.subarray(w.rowStart, w.rowEnd),
          blockScales.subarray(w.groupStart, w.groupEnd),
          errors.subarray(w.rowStart, w.rowEnd),
        );
      }
      return { channelScales, blockScales, errors };
    },

    factorHessian(hessian, columns, name) {
      checkLength('Hessian', hessian.length, columns * columns);
      const stride = (columns + 7) & ~7;
      const factors = { rows: new Float32Array(columns * stride), diagonal: new Float32Array(columns) };
      const failed = engine.factorHessian(hessian, stride, factors.rows, factors.diagonal);
      if (failed >= 0) throw notPositive(failed, name);
      return factors;
    },
    roundCompensated(weights, layout, factors, scales, groups, range) {
      checkLayout(layout, weights.length);
      checkRange(range);
      const { rows, columns, name } = layout;
      const stride = (columns + 7) & ~7;
      checkLength('factors', factors.rows.length, columns * stride);
      checkLength('diagonal', factors.diagonal.length, columns);
      checkLength('groups', groups.length, columns);
      const count = scales.length / rows;
      checkScales(scales, { rows, columns: count, block: 1, ...(name === undefined ? {} : { name }) });
      const last = groups.reduce((a, b) => Math.max(a, b), 0);
      if (last >= count) checkLength('scales', scales.length, rows * (last + 1));
      const integers = new Int8Array(weights.length);
      const errors = new Float64Array(rows);
      // The factors go into the engine with every window, and it takes rows in fours.
      const step = Math.max(4, Math.floor(windowBytes / 4 / columns) & ~3);
      for (let from = 0; from < rows; from += step) {
        const to = Math.min(rows, from + step);
        engine.roundCompensated(
          weights.subarray(from * columns, to * columns),
          stride,
          factors.rows,
          factors.diagonal,
          scales.subarray(from * count, to * count),
          groups,
          range,
          integers.subarray(from * columns, to * columns),
          errors.subarray(from, to),
        );
      }
      return { integers, errors };
    },
    ...createTransposes(engine),
  };
  return kernels;
}
