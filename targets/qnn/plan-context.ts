import type { WeightMemory } from '../plan-memory.ts';

// Measured on QAIRT 2.51, x86: binaries of the demo model, stories260k and SmolLM2 (docs/sweep.md says how well they predict).
/** Code of a graph: for every layer, every weight, every weight in blocks, and every attention score. */
const CODE = { layer: 22e3, weight: 0.0125, block: 0.027, score: 0.03 } as const;
/** What aligning the shared weights of a layer takes. */
const LAYER_PADDING = 28e3;

/** The graphs of a binary. */
export interface ContextShape {
  readonly layers: number;
  readonly heads: number;
  /** New tokens and whole context of every graph. */
  readonly graphs: readonly { readonly tokens: number; readonly cache: number }[];
  /** Whether they have one copy of the weights. */
  readonly share: boolean;
}

/** Bytes of an HTP context binary: the weights once where graphs share them, and the code of every graph. */
export function planContextBytes(memory: WeightMemory, { layers, heads, graphs, share }: ContextShape): number {
  const weights = memory.weightBytes + (memory.embeddingInGraph ? memory.embeddingBytes : 0);
  const copies = share ? 1 : graphs.length;
  const scores = graphs.reduce((sum, { tokens, cache }) => sum + tokens * cache, 0) * heads * layers;
  const code = layers * CODE.layer + memory.weights * CODE.weight + memory.blockWeights * CODE.block;
  return copies * (weights + layers * LAYER_PADDING) + graphs.length * code + scores * CODE.score;
}
