import type { Graph, Node, Value } from '../compiler/ir/graph.ts';
import type { Recipe } from './recipe.ts';
import { conversionSource, movementRoot, type Statistics } from './statistics.ts';

/**
 * Why a computing node must work at 16 bits in an 8-bit scheme, or undefined. What decides is measured on SmolLM2 at w8a8
 * (docs/accuracy.md): a residual stream with outlier channels, and values whose typical row drowns beside their own
 * outliers, whether the node writes or reads them: at 8 bits it would first squeeze what it reads.
 */
export function promotionReason(graph: Graph, node: Node, recipe: Recipe, statistics: Statistics): string | undefined {
  const reads = node.inputs.filter((value): value is Value => value !== undefined);
  // At 8 bits its input would lose every row beside an outlier channel, however wide the stream itself is kept
  // (perplexity ratio 163 with 8-bit norms).
  if (node.op === 'RMSNormalization') return 'it reads the residual stream';
  // Rounding of the stream adds up over the layers: nothing later takes it away.
  if (node.op === 'Add' && node.output().consumers.some(({ op }) => op === 'RMSNormalization'))
    return 'it is the residual stream';
  if (node.op === 'Add' && reads.some((value) => isMask(value, statistics)))
    return "the mask's sentinel takes most of an 8-bit range";
  if (
    node.op === 'Softmax' &&
    reads.some(({ producer }) => producer?.inputs.some((value) => isMask(value, statistics)))
  )
    return 'its input is at 16 bits for the mask';
  const caches = new Set([...graph.states.values()].flatMap((port) => [port.input, port.output]));
  for (const value of node.outputs) {
    const left = value && typicalDecibels(value.name, statistics);
    if (left !== undefined && left < recipe.promoteBelow)
      return `a typical row would keep ${left.toFixed(0)} dB at 8 bits`;
  }
  for (const value of reads) {
    if (value.data) continue;
    const root = movementRoot(conversionSource(value));
    // The recipe decides the width of a cache.
    if (caches.has(root) || root.producer?.inputs.some((part) => part && caches.has(part))) continue;
    const left = typicalDecibels(root.name, statistics);
    if (left !== undefined && left < recipe.promoteBelow)
      return `a typical row of ${root.name} would keep ${left.toFixed(0)} dB at 8 bits`;
  }
  return undefined;
}

/**
 * What a value's typical row (median of row RMS) keeps against the noise of 255 steps over its whole range, in dB: one
 * channel above 1,000 on a few tokens costs every other token its signal.
 */
function typicalDecibels(name: string, statistics: Statistics): number | undefined {
  const seen = statistics.get(name);
  if (!seen || seen.typical === 0) return undefined;
  const step = (Math.max(0, seen.max) - Math.min(0, seen.min)) / 255;
  return 20 * Math.log10(seen.typical / (step / Math.sqrt(12)));
}

function isMask(value: Value | undefined, statistics: Statistics): boolean {
  const seen = value && statistics.get(value.name);
  return (
    seen !== undefined && value?.producer === undefined && value?.data === undefined && seen.max <= 0 && seen.min <= -30
  );
}
