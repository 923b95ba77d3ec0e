import type { DecoderSession } from '../compiler/runtime/decoder-session.ts';
import { argmax } from '../compiler/runtime/generate.ts';
import { addLogits, emptyLogitSums, reportLogits } from './logits.ts';
import type { CacheCheck, ChunkReport } from './report.ts';

/** Tokens decoded after the chunk, each fed to both engines: the float model's own greedy choice. */
const DECODED = 4;

/** How exactly an engine computes: its logits against ONNX Runtime's on the same QDQ models. */
export interface TwinFigures {
  readonly sqnr: number;
  /** Share of the positions whose most likely token is the same. */
  readonly topAgreement: number;
}

/** Compares the logits of two engines on one chunk, each from an empty cache. */
export async function compareTwin(
  reference: DecoderSession,
  session: DecoderSession,
  window: readonly number[],
): Promise<TwinFigures> {
  reference.reset();
  session.reset();
  return compareRows(await reference.feed(window, 'all'), await session.feed(window, 'all'));
}

/** Signal to noise and agreement of rows of logits, position by position. */
export function compareRows(expected: readonly Float32Array[], got: readonly Float32Array[]): TwinFigures {
  let signal = 0;
  let noise = 0;
  let same = 0;
  expected.forEach((row, i) => {
    const other = got[i]!;
    row.forEach((value, j) => {
      signal += value * value;
      noise += (value - other[j]!) ** 2;
    });
    if (argmax(row) === argmax(other)) same++;
  });
  return {
    sqnr: noise === 0 ? Number.POSITIVE_INFINITY : 10 * Math.log10(signal / noise),
    topAgreement: same / expected.length,
  };
}

/**
 * dB between the logits of two engines after a prompt and after each of a few tokens decoded behind it: the way a runtime
 * uses an artifact, for artifacts whose logits after every token come from a twin.
 */
export async function decodeSqnr(
  reference: DecoderSession,
  session: DecoderSession,
  prompt: readonly number[],
): Promise<number> {
  const sums = emptyLogitSums();
  reference.reset();
  session.reset();
  let ids = prompt;
  for (let decoded = 0; decoded <= DECODED; decoded++) {
    if (Math.min(reference.room, session.room) < ids.length) break;
    const [expected] = await reference.feed(ids);
    const [got] = await session.feed(ids);
    const next = argmax(expected!);
    addLogits(sums, expected!, got!, next);
    ids = [next];
  }
  return reportLogits(sums).sqnr;
}

/** A chunk, the tokens decoded after it, and the logits after the chunk and after each of these. */
export interface GreedyRun {
  readonly chunk: readonly number[];
  readonly decoded: readonly number[];
  readonly rows: readonly Float32Array[];
}

/** Feeds a chunk from an empty cache and decodes a few tokens greedily. */
export async function runGreedy(session: DecoderSession, chunk: readonly number[]): Promise<GreedyRun> {
  session.reset();
  const rows = (await session.feed(chunk)).slice(-1);
  const decoded: number[] = [];
  while (decoded.length < DECODED && session.room > 0) {
    decoded.push(argmax(rows.at(-1)!));
    rows.push((await session.feed(decoded.slice(-1)))[0]!);
  }
  return { chunk, decoded, rows };
}

/**
 * Repeats a run of the largest cache with the graphs of every smaller one: the same tokens, so the same logits.
 * The session is held to the largest cache afterwards.
 */
export async function compareCaches(session: DecoderSession, run: GreedyRun): Promise<CacheCheck[]> {
  const checks: CacheCheck[] = [];
  const largest = session.cacheSizes.at(-1)!;
  for (const cache of session.cacheSizes) {
    if (cache === largest) continue;
    session.pinCache(cache);
    const rows = (await session.feed(run.chunk)).slice(-1);
    for (const id of run.decoded.slice(0, session.room)) rows.push((await session.feed([id]))[0]!);
    checks.push({ cache, ...compareRows(run.rows.slice(0, rows.length), rows) });
  }
  session.pinCache(largest);
  return checks;
}

export interface ChunkEngines {
  readonly float: DecoderSession;
  /** The slow engine. */
  readonly session: DecoderSession;
  /** ONNX Runtime on the same QDQ models, where there are any. */
  readonly reference: DecoderSession | undefined;
}

/**
 * One prefill chunk and the first decoded tokens on a slow engine, run once and timed on this machine, beside the float
 * model and the engine's reference. All are fed the same tokens: the text, then the float model's own greedy choice.
 */
export async function compareChunk(
  { float, session, reference }: ChunkEngines,
  ids: readonly number[],
  prefix: readonly number[],
): Promise<{ readonly chunk: ChunkReport; readonly twin: TwinFigures | undefined; readonly run: GreedyRun }> {
  const sums = emptyLogitSums();
  const window = [...prefix, ...ids];
  for (const each of [float, session, reference]) each?.reset();
  const expected = await float.feed(window, 'all');
  const started = performance.now();
  const got = await session.feed(window, 'all');
  const secondsPerChunk = (performance.now() - started) / 1000;
  const same = (await reference?.feed(window, 'all')) ?? [];
  for (let i = prefix.length; i + 1 < window.length; i++) addLogits(sums, expected[i]!, got[i]!, window[i + 1]!);
  const decoded: number[] = [];
  let decodeSeconds = 0;
  let last = expected.at(-1)!;
  while (decoded.length < DECODED && float.room > 0 && session.room > 0) {
    const next = argmax(last);
    last = (await float.feed([next]))[0]!;
    const before = performance.now();
    got.push((await session.feed([next]))[0]!);
    decodeSeconds += (performance.now() - before) / 1000;
    if (reference) same.push((await reference.feed([next]))[0]!);
    addLogits(sums, last, got.at(-1)!, argmax(last));
    decoded.push(next);
  }
  const report = reportLogits(sums);
  return {
    chunk: {
      tokens: window.length,
      sqnr: report.sqnr,
      topAgreement: report.topAgreement,
      divergence: report.divergence,
      secondsPerChunk,
      secondsPerToken: decoded.length > 0 ? decodeSeconds / decoded.length : 0,
    },
    twin: reference && compareRows(same, got),
    run: { chunk: window, decoded, rows: got.slice(window.length - 1) },
  };
}
