import { NpucError } from '../compiler/errors.ts';
import type { DecoderSession } from '../compiler/runtime/decoder-session.ts';
import { addLogits, emptyLogitSums, type LogitReport, type LogitSums, reportLogits } from './logits.ts';

export interface EvaluateOptions {
  /** Tokens per window; each window starts with an empty cache. */
  readonly window: number;
  /** Tokens put before each window, such as the start token; they are not predicted. */
  readonly prefix?: readonly number[];
  readonly onProgress?: (done: number, total: number) => void;
}

/**
 * Streams held-out text through the float model and through other engines side by side, window by window, and compares
 * their predictions. Only one window's logits are in memory.
 * @throws QT110 when windows or text are too short to predict anything
 */
export async function evaluateLogits(
  reference: DecoderSession,
  others: ReadonlyMap<string, DecoderSession>,
  ids: readonly number[],
  options: EvaluateOptions,
): Promise<Map<string, LogitReport>> {
  const sums = new Map<string, LogitSums>([...others.keys()].map((name) => [name, emptyLogitSums()]));
  const prefix = options.prefix ?? [];
  const step = options.window - prefix.length;
  // Of every window the first token of text is given, so two are the least; the negation catches NaN.
  if (!(step >= 2 && ids.length >= 2)) {
    throw new NpucError('QT110', {
      message: `${ids.length} tokens in windows of ${options.window} leave nothing to predict`,
      hint: 'give a longer text, or larger windows: a larger --cache',
    });
  }
  for (let start = 0; start < ids.length; start += step) {
    const part = ids.slice(start, start + step);
    if (part.length < 2) break;
    const window = [...prefix, ...part];
    reference.reset();
    const expected = await reference.feed(window, 'all');
    for (const [name, session] of others) {
      session.reset();
      const got = await session.feed(window, 'all');
      // The prefix's own tokens are not text: predictions start after the first token of the part.
      for (let i = prefix.length; i + 1 < window.length; i++)
        addLogits(sums.get(name)!, expected[i]!, got[i]!, window[i + 1]!);
    }
    options.onProgress?.(Math.min(start + step, ids.length), ids.length);
  }
  return new Map([...sums].map(([name, sum]) => [name, reportLogits(sum)]));
}
