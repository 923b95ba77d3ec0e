import { NpucError } from '../errors.ts';
import type { DecoderSession } from './decoder-session.ts';

export interface SamplingOptions {
  /** 0 is greedy. */
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly seed: number;
}

/** A small seeded generator (mulberry32), so that sampled text can be repeated. */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The next token of a logits row. @throws RT112 when the row holds NaN where it matters */
export function sampleToken(logits: Float32Array, options: SamplingOptions, random: () => number): number {
  const best = argmax(logits);
  if (!Number.isFinite(logits[best])) {
    throw new NpucError('RT112', {
      message: `the likeliest token has the logit ${logits[best]}`,
      hint: 'the artifact overflows: npuc diff shows how far it is from the float model',
    });
  }
  if (options.temperature <= 0) return best;
  const order = Array.from(logits.keys()).sort((a, b) => logits[b]! - logits[a]! || a - b);
  const kept = order.slice(0, options.topK > 0 ? options.topK : order.length);
  const top = logits[kept[0]!]!;
  const weights = kept.map((id) => Math.exp((logits[id]! - top) / options.temperature));
  const total = weights.reduce((a, b) => a + b, 0);
  let count = 0;
  for (let sum = 0; count < weights.length && sum < options.topP * total; count++) sum += weights[count]!;
  const reach = weights.slice(0, count).reduce((a, b) => a + b, 0);
  let left = random() * reach;
  for (let i = 0; i < count; i++) {
    left -= weights[i]!;
    if (left <= 0) return kept[i]!;
  }
  return kept[Math.max(0, count - 1)]!;
}

/** Index of the largest logit, the first of equals. */
export function argmax(logits: Float32Array): number {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i]! > logits[best]!) best = i;
  return best;
}

/**
 * Tokens after a prompt, one by one: prefill in chunks, then decode. Ends at an end token or when the cache is full.
 * @throws RT102 when the prompt does not fit the cache, RT103 when it is empty, RT112 when logits are no numbers
 */
export async function* generateTokens(
  session: DecoderSession,
  prompt: readonly number[],
  count: number,
  endIds: readonly number[],
  options: SamplingOptions,
): AsyncGenerator<number> {
  if (prompt.length === 0) throw new NpucError('RT103', { message: 'the prompt has no tokens' });
  const random = seededRandom(options.seed);
  session.reset();
  let [logits] = (await session.feed(prompt)).slice(-1);
  for (let i = 0; i < count; i++) {
    const next = sampleToken(logits!, options, random);
    if (endIds.includes(next)) return;
    yield next;
    if (session.room < 1 || i + 1 === count) return;
    [logits] = await session.feed([next]);
  }
}

const GREEDY: SamplingOptions = { temperature: 0, topK: 0, topP: 1, seed: 0 };

/** The greedy continuation of a prompt. */
export async function generateGreedy(
  session: DecoderSession,
  prompt: readonly number[],
  count: number,
  endIds: readonly number[] = [],
): Promise<number[]> {
  const ids: number[] = [];
  for await (const id of generateTokens(session, prompt, count, endIds, GREEDY)) ids.push(id);
  return ids;
}
