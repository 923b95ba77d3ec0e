import type { GraphRequest } from '../calibration/quantize-decoder.ts';
import { NpucError } from '../compiler/errors.ts';

/** The sizes that a decoder is compiled for: a graph for every pair of them. */
export interface ShapeRequest {
  /** New tokens per prefill run; a decode graph of 1 token is always made. */
  readonly tokens: readonly number[];
  /** Whole contexts that a graph sees, at least one. */
  readonly caches: readonly number[];
}

/** The whole context of a decoder: sessions move to it from the smaller ones. */
export function largestCache({ caches }: Pick<ShapeRequest, 'caches'>): number {
  return Math.max(...caches);
}

/** @throws IM410 naming every pair whose tokens leave no room for a past */
export function checkShapes({ tokens, caches }: ShapeRequest): void {
  const pairs = [...new Set([...tokens, 1])].flatMap((size) =>
    [...new Set(caches)].filter((cache) => size >= cache).map((cache) => `--cache ${cache} with --tokens ${size}`),
  );
  if (pairs.length === 0) return;
  throw new NpucError('IM410', {
    message: `the cache must be larger than the tokens: not so ${pairs.join(', ')}`,
    hint: 'the cache is the whole context that a graph sees, the new tokens included',
  });
}

/**
 * Every graph of a request: caches from small to large, in each the prefill sizes, largest first, then decode. All of them
 * are made for the largest context, so that they have the same rotary tables.
 */
export function graphRequests({ tokens, caches }: ShapeRequest): GraphRequest[] {
  const sizes = [...new Set([...tokens, 1])].sort((a, b) => b - a);
  const contexts = [...new Set(caches)].sort((a, b) => a - b);
  const context = contexts.at(-1)!;
  return contexts.flatMap((cache) =>
    sizes.map((size) => {
      const name = size === 1 ? 'decode' : `prefill_${size}`;
      return { name: contexts.length > 1 ? `${name}_c${cache}` : name, tokens: size, cache, context };
    }),
  );
}
