import { existsSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { Manifest, ModelManifest } from '../../targets/manifest.ts';
import { type ContextInfo, type ContextTensor, readContextBinaries } from '../../targets/qnn/read-context.ts';
import { findToolchain, requireToolchain } from '../../targets/qnn/toolchain.ts';
import { socOfNumber } from '../../targets/socs.ts';
import { formatBytes } from '../render-plan.ts';
import type { Description } from './description.ts';

/**
 * What an HTP context binary holds, its ports included. No model is needed.
 * @throws QN001 without the toolchain, whose reader it is, QN014 when the file is none
 */
export async function describeContext(path: string): Promise<Description> {
  const [context] = await readContextBinaries(requireToolchain('qnn'), [path]);
  return {
    kind: 'context-binary',
    data: context,
    lines: [
      `HTP context binary ${basename(path)}  ${describeBinary(context!)}`,
      ...context!.graphs.flatMap((graph) => [
        `  ${describeGraph(graph)}`,
        ...graph.inputs.map((each) => `    in   ${describeTensor(each)}`),
        ...graph.outputs.map((each) => `    out  ${describeTensor(each)}`),
      ]),
    ],
  };
}

/** What the binaries of a compiled folder say of themselves, by file; only the files' names without the toolchain. */
export async function describeBinaries(
  folder: string,
  manifest: Manifest | ModelManifest,
): Promise<{
  readonly contexts: Readonly<Record<string, ContextInfo>>;
  readonly lines: ReadonlyMap<string, string[]>;
}> {
  const files = (manifest.targets.qnn?.files ?? []).filter((file) => file.endsWith('.bin'));
  const there = files.filter((file) => existsSync(join(folder, file)));
  const toolchain = there.length > 0 ? findToolchain('qnn') : undefined;
  if (!toolchain) {
    const hint = '      npuc toolchain install qnn lets inspect read what it holds';
    return { contexts: {}, lines: new Map(there.map((file) => [file, [hint]])) };
  }
  const paths = there.map((file) => join(folder, file));
  const contexts = await readContextBinaries(toolchain, paths);
  return {
    contexts: Object.fromEntries(there.map((file, i) => [file, contexts[i]!])),
    lines: new Map(
      there.map((file, i) => [
        file,
        [
          `      ${describeBinary(contexts[i]!)}`,
          ...contexts[i]!.graphs.map((graph) => `      ${describeGraph(graph)}`),
        ],
      ]),
    ),
  };
}

function describeBinary({ soc, dspArch, buildId, fileBytes }: ContextInfo): string {
  return `${describeSoc(soc)} v${dspArch}  QNN ${buildId}  ${formatBytes(fileBytes)}`;
}

function describeSoc(number: number): string {
  try {
    return `${socOfNumber(number).name} (soc ${number})`;
  } catch {
    return `soc ${number}`;
  }
}

function describeGraph(graph: ContextInfo['graphs'][number]): string {
  const bytes = [
    `own weights ${formatBytes(graph.ownWeightBytes)}`,
    ...(graph.sharedWeightBytes > 0 ? [`shared weights ${formatBytes(graph.sharedWeightBytes)}`] : []),
    `spill-fill ${formatBytes(graph.spillFillBytes)}`,
    `VTCM ${formatBytes(graph.vtcmBytes)}`,
  ];
  return `graph ${graph.name}  ${graph.inputs.length} in, ${graph.outputs.length} out  ${bytes.join('  ')}`;
}

function describeTensor({ name, dtype, shape, scale, zeroPoint }: ContextTensor): string {
  const steps = scale === undefined ? '' : ` scale ${scale.toPrecision(6)} zero ${zeroPoint}`;
  return `${name} ${dtype}[${shape.join(',')}]${steps}`;
}
