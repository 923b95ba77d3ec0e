import { NpucError } from '../../compiler/errors.ts';
import type { DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { addLogits, emptyLogitSums, type LogitReport, reportLogits } from '../logits.ts';

export interface StreamOptions {
  /** Tokens that are fed at a time, and dropped at a time once the cache is full. */
  readonly chunk: number;
  /** Slots of the cache. */
  readonly cache: number;
  /** First tokens that are never dropped, the start token among them. */
  readonly sinks: number;
  readonly positions: 'cache' | 'global';
  /** Before the text, such as the start token; they are not predicted. */
  readonly prefix: readonly number[];
  readonly onProgress?: (done: number, total: number) => void;
}

export interface StreamReport extends LogitReport {
  /** How often the cache was full and slid. */
  readonly slides: number;
}

/**
 * Streams one long text through two decoders side by side, each through a cache of the same size: when the next chunk has no
 * room the oldest tokens behind the sinks are dropped, in both alike. What a token cannot see any more is part of the figures.
 * @throws QT110 when the text is too short to predict anything, RT105 when sinks and a chunk leave no room
 */
export async function streamPerplexity(
  reference: DecoderSession,
  other: DecoderSession,
  ids: readonly number[],
  options: StreamOptions,
): Promise<StreamReport> {
  const { chunk, cache, sinks, positions, prefix, onProgress } = options;
  if (ids.length < 2) {
    throw new NpucError('QT110', { message: `a text of ${ids.length} tokens has nothing to predict` });
  }
  if (sinks + chunk >= cache) {
    throw new NpucError('RT105', {
      message: `a cache of ${cache} has no room for ${sinks} sinks and a chunk of ${chunk}`,
      hint: 'use fewer --sinks, or a larger --cache',
    });
  }
  const text = [...prefix, ...ids];
  const sums = emptyLogitSums();
  let slides = 0;
  for (const session of [reference, other]) session.reset();
  for (let start = 0; start < text.length; start += chunk) {
    const part = text.slice(start, start + chunk);
    const excess = reference.length + chunk - cache;
    if (excess > 0) {
      for (const session of [reference, other]) session.slide(sinks, excess, positions);
      slides++;
    }
    const expected = await reference.feed(part, 'all');
    const got = await other.feed(part, 'all');
    part.forEach((_, i) => {
      const at = start + i;
      // The first token of the text is given, and nothing follows the last.
      if (at >= prefix.length && at + 1 < text.length) addLogits(sums, expected[i]!, got[i]!, text[at + 1]!);
    });
    onProgress?.(Math.min(start + chunk, text.length), text.length);
  }
  return { ...reportLogits(sums), slides };
}

/** The chunk that texts are streamed in through a cache: small beside it, so that little is dropped at a time. */
export function streamChunk(cache: number): number {
  return Math.max(1, Math.min(64, Math.floor(cache / 4)));
}
