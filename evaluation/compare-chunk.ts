import type { DecoderSession } from '../compiler/runtime/decoder-session.ts';
import { argmax } from '../compiler/runtime/generate.ts';
import { addLogits, emptyLogitSums, reportLogits } from './logits.ts';
import type { ChunkReport } from './report.ts';

/** Tokens decoded after the chunk, each fed to both engines: the float model's own greedy choice. */
const DECODED = 4;

/** dB between the logits of two engines on one chunk, each from an empty cache. */
export async function chunkSqnr(
  reference: DecoderSession,
  session: DecoderSession,
  window: readonly number[],
): Promise<number> {
  reference.reset();
  session.reset();
  const expected = await reference.feed(window, 'all');
  const got = await session.feed(window, 'all');
  let signal = 0;
  let noise = 0;
  expected.forEach((row, i) => {
    row.forEach((value, j) => {
      signal += value * value;
      noise += (value - got[i]![j]!) ** 2;
    });
  });
  return noise === 0 ? Number.POSITIVE_INFINITY : 10 * Math.log10(signal / noise);
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

/**
 * One prefill chunk and the first decoded tokens on a slow engine beside the float model, timed on this machine.
 */
export async function compareChunk(
  reference: DecoderSession,
  session: DecoderSession,
  ids: readonly number[],
  prefix: readonly number[],
): Promise<ChunkReport> {
  const sums = emptyLogitSums();
  const window = [...prefix, ...ids];
  reference.reset();
  session.reset();
  const expected = await reference.feed(window, 'all');
  const started = performance.now();
  const got = await session.feed(window, 'all');
  const secondsPerChunk = (performance.now() - started) / 1000;
  for (let i = prefix.length; i + 1 < window.length; i++) addLogits(sums, expected[i]!, got[i]!, window[i + 1]!);
  const decodeStarted = performance.now();
  let decoded = 0;
  let last = expected.at(-1)!;
  while (decoded < DECODED && reference.room > 0 && session.room > 0) {
    const next = argmax(last);
    last = (await reference.feed([next]))[0]!;
    const other = (await session.feed([next]))[0]!;
    addLogits(sums, last, other, next);
    decoded++;
  }
  const report = reportLogits(sums);
  return {
    tokens: window.length,
    sqnr: report.sqnr,
    topAgreement: report.topAgreement,
    divergence: report.divergence,
    secondsPerChunk,
    secondsPerToken: decoded > 0 ? (performance.now() - decodeStarted) / 1000 / decoded : 0,
  };
}
