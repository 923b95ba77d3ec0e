import { describeSharing } from '../../evaluation/render-terminal.ts';
import { isModelManifest, type Manifest, type ModelManifest } from '../../targets/manifest.ts';
import { qnnTarget } from '../../targets/qnn/qnn-target.ts';
import { type IndexedTensor, readWeightIndex } from '../../targets/qnn/shared-weights.ts';
import type { Toolchain } from '../../targets/qnn/toolchain.ts';
import type { Sharing } from '../../targets/target.ts';
import { formatBytes } from '../render-plan.ts';

/** Weights that are named; the index has all of them. */
const SHOWN = 5;

/** What `npuc inspect` says of a binary that graphs share: bytes, and the largest weights with their digests. */
export interface SharingDescription {
  readonly sharing: Sharing & { readonly tensors: readonly IndexedTensor[] };
  readonly lines: readonly string[];
}

/** @returns undefined where nothing is shared */
export function describeSharedWeights(
  folder: string,
  manifest: Manifest | ModelManifest,
  toolchain?: Toolchain,
): SharingDescription | undefined {
  const target = isModelManifest(manifest) ? undefined : manifest.targets.qnn;
  const sharing = target && qnnTarget.readSharing!(folder, target, toolchain);
  if (!sharing) return undefined;
  const tensors = (readWeightIndex(folder)?.tensors ?? []).filter(({ graphs }) => graphs > 1);
  const largest = [...tensors].sort((a, b) => b.bytes - a.bytes || a.offset - b.offset).slice(0, SHOWN);
  const more = tensors.length - largest.length;
  return {
    sharing: { ...sharing, tensors },
    lines: [
      `    ${describeSharing(sharing, formatBytes)}`,
      ...largest.map(
        ({ name, bytes, graphs, sha256 }) =>
          `      ${name}  ${formatBytes(bytes)}  in ${graphs} graphs  sha256 ${sha256.slice(0, 16)}`,
      ),
      ...(more > 0 ? [`      and ${more} more (--json lists them)`] : []),
    ],
  };
}
