import { existsSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { NpucError } from '../errors.ts';
import { checkImportance, checkLayout, checkLength, checkRange, checkScales, refuseNonFinite } from './check.ts';
import type { Layout, LpbqSearch, QuantRange, ScaleSearch, SearchOptions } from './kernels.ts';
import type { TaskAnswer, TaskRequest } from './pool-worker.ts';

/**
 * Runs kernels over row ranges on worker threads. A task is a range of whole rows, so results do not depend on the number
 * of threads. Weights in a SharedArrayBuffer are read in place; others are copied to a worker one task at a time.
 * Failures are those of the kernels, with the first wrong value in row order whatever the threads; QT016 if a worker dies.
 */
export interface KernelPool {
  readonly threads: number;
  searchScales(weights: Float32Array, layout: Layout, search: SearchOptions, onRows?: OnRows): Promise<ScaleSearch>;
  searchLpbq(weights: Float32Array, layout: Layout, search: SearchOptions, onRows?: OnRows): Promise<LpbqSearch>;
  quantizeI8(weights: Float32Array, layout: Layout, scales: Float32Array, range: QuantRange): Promise<Int8Array>;
  /** Packed int4, as the kernel of that name. */
  quantizeI4(weights: Float32Array, layout: Layout, scales: Float32Array, range: QuantRange): Promise<Uint8Array>;
  /** Stops the workers; what still runs fails with QT016. The process can exit without it too. */
  close(): Promise<void>;
}

/** Called with the number of rows just finished. */
export type OnRows = (rows: number) => void;

/** Values in one task: a fraction of a second of search. */
const TASK_VALUES = 1 << 20;

interface Task {
  /** Made only when a worker takes the task: it may hold a copy of the rows. */
  readonly request: () => TaskRequest;
  readonly settle: (answer: TaskAnswer | NpucError) => void;
}

interface Slot {
  readonly worker: Worker;
  task: Task | undefined;
}

/** A pool of `threads` workers, started as tasks need them. Close it when the work is done. */
export function createKernelPool(threads: number): KernelPool {
  if (!Number.isInteger(threads) || threads < 1) {
    throw new NpucError('XX001', { message: `a kernel pool of ${threads} threads cannot run` });
  }
  const file = workerFile();
  const slots: Slot[] = [];
  const queue: Task[] = [];
  let failure: NpucError | undefined;

  /** A pool that lost a worker is not trusted again: all waiting and running tasks fail. */
  const fail = (error: NpucError): void => {
    failure ??= error;
    const lost = [...slots.flatMap((slot) => slot.task ?? []), ...queue.splice(0)];
    for (const slot of slots) slot.task = undefined;
    for (const task of lost) task.settle(failure);
  };

  const startWorker = (): Slot => {
    const worker = new Worker(file, { execArgv: [] });
    const slot: Slot = { worker, task: undefined };
    worker.on('message', (answer: TaskAnswer) => {
      const { task } = slot;
      slot.task = undefined;
      worker.unref();
      task?.settle(answer);
      dispatch();
    });
    worker.on('error', (cause) => fail(workerFailure(`a kernel worker stopped: ${cause.message}`, cause)));
    worker.on('exit', (code) => fail(workerFailure(`a kernel worker exited with code ${code}`)));
    slots.push(slot);
    return slot;
  };

  const dispatch = (): void => {
    while (queue.length > 0) {
      const slot = slots.find((candidate) => !candidate.task) ?? (slots.length < threads ? startWorker() : undefined);
      if (!slot) return;
      const task = queue.shift() as Task;
      slot.task = task;
      slot.worker.ref();
      const request = task.request();
      slot.worker.postMessage(request, transferable(request));
    }
  };

  /** Runs one job over all rows; `collect` receives each task's answer with the rows it covers. */
  const runRows = (
    weights: Float32Array,
    layout: Layout,
    requestOf: (part: Float32Array, rows: Layout, rowStart: number) => TaskRequest,
    collect: (answer: TaskAnswer, rowStart: number) => NpucError | undefined,
    onRows?: OnRows,
  ): Promise<void> => {
    const { rows, columns } = layout;
    const fitting = Math.max(1, Math.floor(TASK_VALUES / columns));
    const step = columns % 2 === 1 ? (fitting + 1) & ~1 : fitting;
    return new Promise((resolve, reject) => {
      if (failure) {
        reject(failure);
        return;
      }
      let firstError: { rowStart: number; error: NpucError } | undefined;
      let waiting = Math.ceil(rows / step);
      const tasks = Array.from({ length: waiting }, (_, index): Task => {
        const rowStart = index * step;
        const rowEnd = Math.min(rows, rowStart + step);
        const part = weights.subarray(rowStart * columns, rowEnd * columns);
        return {
          request: () => requestOf(ownedOrShared(part), { ...layout, rows: rowEnd - rowStart }, rowStart),
          settle(answer) {
            waiting--;
            const error =
              answer instanceof NpucError
                ? answer
                : (answerError(answer, weights, rowStart, rowEnd, layout) ?? collect(answer, rowStart));
            if (error) {
              if (!firstError || rowStart < firstError.rowStart) firstError = { rowStart, error };
              // Tasks are taken in row order, so every earlier one is done or running: only later ones are dropped.
              for (const task of tasks) {
                const at = queue.indexOf(task);
                if (at < 0) continue;
                queue.splice(at, 1);
                waiting--;
              }
            } else {
              onRows?.(rowEnd - rowStart);
            }
            if (waiting > 0) return;
            if (firstError) reject(firstError.error);
            else resolve();
          },
        };
      });
      queue.push(...tasks);
      dispatch();
    });
  };

  return {
    threads,
    async searchScales(weights, layout, search, onRows) {
      const options = checkedSearch(weights, layout, search);
      const blocks = layout.columns / layout.block;
      const scales = new Float32Array(layout.rows * blocks);
      const errors = new Float64Array(scales.length);
      await runRows(
        weights,
        layout,
        (part, rows) => ({ kind: 'search-scales', weights: part, layout: rows, search: options }),
        (answer, rowStart) => {
          if (answer.kind !== 'search-scales') return unexpected(answer);
          scales.set(answer.result.scales, rowStart * blocks);
          errors.set(answer.result.errors, rowStart * blocks);
          return undefined;
        },
        onRows,
      );
      return { scales, errors };
    },
    async searchLpbq(weights, layout, search, onRows) {
      const options = checkedSearch(weights, layout, search);
      const blocks = layout.columns / layout.block;
      const channelScales = new Float32Array(layout.rows);
      const blockScales = new Uint8Array(layout.rows * blocks);
      const errors = new Float64Array(layout.rows);
      await runRows(
        weights,
        layout,
        (part, rows) => ({ kind: 'search-lpbq', weights: part, layout: rows, search: options }),
        (answer, rowStart) => {
          if (answer.kind !== 'search-lpbq') return unexpected(answer);
          channelScales.set(answer.result.channelScales, rowStart);
          blockScales.set(answer.result.blockScales, rowStart * blocks);
          errors.set(answer.result.errors, rowStart);
          return undefined;
        },
        onRows,
      );
      return { channelScales, blockScales, errors };
    },
    async quantizeI8(weights, layout, scales, range) {
      checkQuantization(weights, layout, scales, range);
      const target = new Int8Array(new SharedArrayBuffer(weights.length));
      await runRows(
        weights,
        layout,
        (part, rows, rowStart) => ({
          kind: 'quantize-i8',
          weights: part,
          layout: rows,
          scales: rowScales(scales, layout, rowStart, rows.rows),
          range,
          target: target.subarray(rowStart * layout.columns, rowStart * layout.columns + part.length),
        }),
        () => undefined,
      );
      return target;
    },
    async quantizeI4(weights, layout, scales, range) {
      checkQuantization(weights, layout, scales, range);
      const target = new Uint8Array(new SharedArrayBuffer(Math.ceil(weights.length / 2)));
      await runRows(
        weights,
        layout,
        (part, rows, rowStart) => {
          const start = (rowStart * layout.columns) / 2;
          return {
            kind: 'quantize-i4',
            weights: part,
            layout: rows,
            scales: rowScales(scales, layout, rowStart, rows.rows),
            range,
            target: target.subarray(start, start + Math.ceil(part.length / 2)),
          };
        },
        () => undefined,
      );
      return target;
    },
    async close() {
      fail(workerFailure('the kernel pool is closed'));
      await Promise.all(slots.splice(0).map(({ worker }) => worker.terminate()));
    },
  };
}

function checkedSearch(weights: Float32Array, layout: Layout, search: SearchOptions): SearchOptions {
  checkLayout(layout, weights.length);
  checkRange(search.range);
  if (!search.importance) return search;
  checkImportance(search.importance, layout);
  // A copy of its own: a message carries the whole buffer under a view.
  return { range: search.range, importance: search.importance.slice() };
}

function checkQuantization(weights: Float32Array, layout: Layout, scales: Float32Array, range: QuantRange): void {
  checkLayout(layout, weights.length);
  checkRange(range);
  checkScales(scales, layout);
  checkLength('weights', weights.length, layout.rows * layout.columns);
}

function rowScales(scales: Float32Array, layout: Layout, rowStart: number, rows: number): Float32Array {
  const blocks = layout.columns / layout.block;
  return scales.slice(rowStart * blocks, (rowStart + rows) * blocks);
}

/** Shared memory goes as it is, other memory as a copy of these rows that the worker then owns. */
function ownedOrShared(part: Float32Array): Float32Array {
  return part.buffer instanceof SharedArrayBuffer ? part : part.slice();
}

function transferable({ weights }: TaskRequest): ArrayBuffer[] {
  return weights.buffer instanceof ArrayBuffer ? [weights.buffer] : [];
}

/** The coded error of a task, with places counted in the whole tensor. */
function answerError(
  answer: TaskAnswer,
  weights: Float32Array,
  rowStart: number,
  rowEnd: number,
  layout: Layout,
): NpucError | undefined {
  if (answer.kind !== 'error') return undefined;
  try {
    if (answer.code === 'QT010') refuseNonFinite(weights, rowStart * layout.columns, rowEnd * layout.columns, layout);
  } catch (error) {
    return error as NpucError;
  }
  return new NpucError(answer.code, answer.details);
}

function unexpected(answer: TaskAnswer): NpucError {
  return new NpucError('XX001', { message: `a kernel worker answered ${answer.kind} to another request` });
}

function workerFailure(message: string, cause?: unknown): NpucError {
  return new NpucError('QT016', { message, exitCode: 70, cause });
}

/** The compiled worker: beside this file, or under dist/ when the sources run directly (tests). */
function workerFile(): string {
  const here = fileURLToPath(import.meta.url);
  const folder = dirname(here);
  if (here.endsWith('.js')) return join(folder, 'pool-worker.js');
  let root = folder;
  while (!existsSync(join(root, 'package.json'))) root = dirname(root);
  const file = join(root, 'dist', relative(root, folder), 'pool-worker.js');
  if (!existsSync(file)) {
    throw new NpucError('QT016', { message: 'the kernel worker is not built', hint: 'npm run build', exitCode: 70 });
  }
  return file;
}
