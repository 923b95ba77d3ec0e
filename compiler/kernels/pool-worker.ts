import { parentPort } from 'node:worker_threads';
import { type ErrorCode, type ErrorDetails, NpucError } from '../errors.ts';
import { createKernels } from './create-kernels.ts';
import type { Layout, LpbqSearch, QuantRange, ScaleSearch, SearchOptions } from './kernels.ts';
import { createWasmEngine } from './wasm-engine.ts';

/** The thread side of pool.ts: one request at a time, answered in the same order. */

interface Rows {
  /** The rows of this task only. */
  readonly weights: Float32Array;
  readonly layout: Layout;
}

export type TaskRequest =
  | (Rows & { readonly kind: 'search-scales' | 'search-lpbq'; readonly search: SearchOptions })
  | (Rows & { readonly scales: Float32Array; readonly range: QuantRange } & (
        | { readonly kind: 'quantize-i8'; readonly target: Int8Array }
        | { readonly kind: 'quantize-i4'; readonly target: Uint8Array }
      ));

export type TaskAnswer =
  | { readonly kind: 'search-scales'; readonly result: ScaleSearch }
  | { readonly kind: 'search-lpbq'; readonly result: LpbqSearch }
  /** The result lies in the request's shared target. */
  | { readonly kind: 'quantized' }
  | { readonly kind: 'error'; readonly code: ErrorCode; readonly details: ErrorDetails };

const kernels = createKernels(createWasmEngine());

function answerTask(request: TaskRequest): TaskAnswer {
  const { weights, layout } = request;
  switch (request.kind) {
    case 'search-scales':
      return { kind: 'search-scales', result: kernels.searchScales(weights, layout, request.search) };
    case 'search-lpbq':
      return { kind: 'search-lpbq', result: kernels.searchLpbq(weights, layout, request.search) };
    case 'quantize-i8':
      kernels.quantizeI8(weights, layout, request.scales, request.range, request.target);
      return { kind: 'quantized' };
    case 'quantize-i4':
      kernels.quantizeI4(weights, layout, request.scales, request.range, request.target);
      return { kind: 'quantized' };
  }
}

parentPort?.on('message', (request: TaskRequest) => {
  let answer: TaskAnswer;
  try {
    answer = answerTask(request);
  } catch (error) {
    if (!(error instanceof NpucError)) throw error;
    const { code, message, where, hint } = error;
    answer = { kind: 'error', code, details: { message, where, hint } };
  }
  parentPort?.postMessage(answer);
});
