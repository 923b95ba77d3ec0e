import { existsSync } from 'node:fs';
import { basename, join } from 'node:path';
import { quantizeGraph } from '../../calibration/quantize-graph.ts';
import { makeRecipe, SCHEMES, type Scheme } from '../../calibration/recipe.ts';
import { randomSamples } from '../../calibration/samples.ts';
import { NpucError } from '../../compiler/errors.ts';
import { writeOnnx } from '../../compiler/export/onnx.ts';
import { openCheckpoint } from '../../compiler/import/checkpoint.ts';
import { buildDecoder, readDecoderModel } from '../../compiler/import/decoder-model.ts';
import { openOnnx } from '../../compiler/import/onnx.ts';
import { cloneModule } from '../../compiler/ir/clone.ts';
import type { Module } from '../../compiler/ir/graph.ts';
import { wasmKernels } from '../../compiler/kernels/index.ts';
import { runPasses } from '../../compiler/pass.ts';
import { applyIoContract } from '../../passes/apply-io-contract.ts';
import { foldQdq } from '../../passes/fold-qdq.ts';
import { genieContract } from '../../passes/io-contract.ts';
import { lowerForHtp } from '../../passes/pipelines.ts';
import { isOutputFolder, readAnyManifest } from '../../targets/manifest.ts';
import { askVendor, type VendorVerdict } from '../../targets/qnn/ask-vendor.ts';
import { checkGraph, type Finding, type FindingNode, isFatal } from '../../targets/qnn/check-graph.ts';
import { qnnModelTarget } from '../../targets/qnn/qnn-model.ts';
import { MEASURED_ON } from '../../targets/qnn/rules.ts';
import { requireToolchain } from '../../targets/qnn/toolchain.ts';
import { findSoc, requireStatic, type Soc, socSupports } from '../../targets/socs.ts';
import { openModel } from './open-model.ts';

export interface LintOptions {
  readonly path: string;
  readonly soc: string;
  readonly scheme: string;
  readonly bind: readonly string[];
  /** Where the repaired model goes; undefined: nothing is written. */
  readonly fix?: string;
  /** Ask the vendor's validator as well. */
  readonly withToolchain: boolean;
}

export interface LintResult {
  readonly kind: 'lint';
  readonly model: string;
  readonly soc: string;
  readonly arch: string;
  /** What the graph was judged at; a graph with encodings of its own is judged at those. */
  readonly scheme: Scheme;
  readonly nodes: number;
  readonly findings: readonly Finding[];
  /** Findings that no rewrite, choice of formats or flag mends. */
  readonly fatal: readonly string[];
  readonly fixed?: { readonly file: string; readonly passes: readonly string[]; readonly left: readonly Finding[] };
  readonly vendor?: {
    readonly toolchain: Readonly<Record<string, string>>;
    readonly refusals: readonly { readonly node: FindingNode; readonly reason: string }[];
    readonly errors: readonly string[];
    /** Codes of rules that say "refused" of nodes that the vendor takes. */
    readonly contradicts: readonly string[];
  };
}

/**
 * The linter: what a SoC's HTP cannot take of a model, grouped by reason, and what mends it.
 * @param options.path an ONNX model, float or QDQ; a checkpoint; or an output folder of a compile, whose QDQ models are judged
 * @throws CL001 for flags that do not go together and files of no known kind, TG001 for an unknown SoC, and what opening throws
 */
export async function lintModel(options: LintOptions): Promise<LintResult> {
  const soc = findSoc(options.soc);
  const scheme = checkScheme(options.scheme);
  const isOnnx = options.path.endsWith('.onnx');
  if (options.fix !== undefined && !isOnnx)
    throw new NpucError('CL001', {
      message: '--fix rewrites ONNX models',
      where: options.path,
      hint: 'what mends a checkpoint is a flag of compile; the findings name it',
    });
  if (options.fix !== undefined && existsSync(options.fix))
    throw new NpucError('CL001', {
      message: `${options.fix} is there already`,
      where: options.fix,
      hint: 'choose another --out',
    });
  const modules = await openForLint(options);
  // Some things are true of how a file writes integers, and gone when they are read as encodings.
  const written = modules.map((module) =>
    checkGraph(module, soc, { scheme }).filter(({ nodes }) => nodes.every(({ op }) => op === 'DequantizeLinear')),
  );
  for (const module of modules) runPasses(module, [foldQdq]);
  const found = [...written, ...modules.map((module) => checkGraph(module, soc, { scheme }))];
  const findings = [...mergeFindings(found), ...(isOnnx ? [] : checkRecipe(options.path, soc, scheme))];
  const lowered = isOnnx ? lower(modules[0]!) : undefined;
  const result: LintResult = {
    kind: 'lint',
    model: basename(options.path),
    soc: soc.name,
    arch: `v${soc.arch}`,
    scheme,
    nodes: modules.reduce((sum, module) => sum + module.graph().nodes.length, 0),
    findings,
    fatal: findings.filter(isFatal).map(({ code }) => code),
  };
  const fixed = lowered && { passes: lowered.passes, left: checkGraph(lowered.module, soc, { scheme }) };
  // What a rewrite promised and could not do, or made, is as bad as what has none.
  const stuck = (fixed?.left ?? []).filter(
    (finding) => isFatal(finding) || (finding.verdict !== 'weak' && finding.mend?.kind === 'pass'),
  );
  const fatal = [...new Set([...result.fatal, ...stuck.map(({ code }) => code)])];
  if (lowered && options.fix !== undefined) writeOnnx(lowered.module, options.fix);
  const vendor = options.withToolchain && lowered ? await consult(lowered.module, fixed!.left, soc, scheme) : undefined;
  return {
    ...result,
    fatal,
    ...(fixed && options.fix !== undefined ? { fixed: { file: options.fix, ...fixed } } : {}),
    ...(vendor ? { vendor } : {}),
  };
}

/** 1 when something keeps the model from the NPU, 0 otherwise. */
export function exitCodeOf({ fatal, vendor }: LintResult): number {
  return fatal.length > 0 || (vendor && vendor.refusals.length + vendor.errors.length > 0) ? 1 : 0;
}

function checkScheme(scheme: string): Scheme {
  if (SCHEMES.includes(scheme as Scheme)) {
    requireStatic({ scheme: scheme as Scheme });
    return scheme as Scheme;
  }
  throw new NpucError('CL001', { message: `unknown scheme ${scheme}`, hint: `one of ${SCHEMES.join(', ')}` });
}

async function openForLint({ path, bind }: LintOptions): Promise<Module[]> {
  if (path.endsWith('.onnx')) {
    return [openModel(path, bind).module];
  }
  if (isOutputFolder(path)) {
    const { targets } = readAnyManifest(path);
    const files = (targets.qnn?.files ?? targets.onnx?.files ?? []).filter(
      (file) => file.endsWith('.onnx') && !file.endsWith('_ctx.onnx'),
    );
    if (files.length === 0)
      throw new NpucError('CL001', {
        message: 'the folder holds no QDQ model',
        where: path,
        hint: 'compile with --target qnn or onnx',
      });
    return files.map((file) => openOnnx(join(path, file)));
  }
  const checkpoint = await openCheckpoint(path);
  try {
    const { config, weights } = readDecoderModel(checkpoint);
    // Nodes do not depend on lengths: the smallest decode graph has them all.
    const module = buildDecoder(config, weights, 2, true);
    applyIoContract(module, genieContract, { tokens: 1, cache: 2, logits: 'all' });
    return [module];
  } finally {
    checkpoint.close();
  }
}

/** What a checkpoint's scheme needs of the SoC. */
function checkRecipe(path: string, soc: Soc, scheme: Scheme): Finding[] {
  if (isOutputFolder(path)) return [];
  const needs: Finding[] = [];
  const need = (code: string, feature: 'lpbq' | 'kv-s16', reason: string, flag: string): void => {
    if (socSupports(soc, feature)) return;
    const verdict = feature === 'lpbq' ? 'refused' : 'weak';
    needs.push({ code, verdict, reason, nodes: [], mend: { kind: 'flag', flag }, measured: 'see docs/linter.md' });
  };
  if (scheme === 'w4a16')
    need('HTP040', 'lpbq', `v${soc.arch} has no two-level block scales`, '--block 0, or --scheme w8a16');
  if (scheme === 'w4a16' || scheme === 'w8a16')
    need('HTP041', 'kv-s16', `v${soc.arch} multiplies no two 16-bit operands: caches have 8 bits`, '--kv 8');
  return needs;
}

/** The findings of several graphs as those of one. */
function mergeFindings(lists: readonly (readonly Finding[])[]): Finding[] {
  const merged = new Map<string, Finding>();
  for (const finding of lists.flat()) {
    const key = `${finding.code} ${finding.reason}`;
    const before = merged.get(key);
    merged.set(key, before ? { ...before, nodes: [...before.nodes, ...finding.nodes] } : finding);
  }
  return [...merged.values()].sort((a, b) => (a.code < b.code ? -1 : a.code > b.code ? 1 : 0));
}

function lower(source: Module): { module: Module; passes: readonly string[] } {
  const module = cloneModule(source);
  const { changed } = runPasses(module, lowerForHtp);
  return { module, passes: [...new Set(changed)] };
}

/** Asks the vendor about the graph as compile would hand it over: quantized on random samples, as only forms matter. */
async function consult(
  module: Module,
  left: readonly Finding[],
  soc: Soc,
  scheme: Scheme,
): Promise<LintResult['vendor']> {
  const toolchain = requireToolchain('qnn');
  const isQuantized = [...module.graph().values].some(({ encoding }) => encoding !== undefined);
  const quantized = isQuantized
    ? module
    : (
        await quantizeGraph({
          module,
          feeds: randomSamples(module.graph(), 1, 1).feeds,
          recipe: makeRecipe(scheme),
          format: qnnModelTarget.format(soc),
          kernels: wasmKernels,
          promote: false,
        })
      ).module;
  const verdict: VendorVerdict = await askVendor(quantized, soc, toolchain);
  const nodes = new Map(quantized.graph().nodes.map((node) => [node.name, node]));
  const refused = new Set(verdict.refusals.map(({ node }) => node));
  return {
    toolchain: toolchain.versions,
    refusals: verdict.refusals.map(({ node, op, reason }) => ({
      node: { name: node, op, from: nodes.get(node)?.from ?? [] },
      reason,
    })),
    errors: verdict.errors,
    contradicts: left
      .filter((finding) => finding.verdict === 'refused' && finding.nodes.every(({ name }) => !refused.has(name)))
      .map(({ code }) => code),
  };
}

/** What is printed of a result. */
export function describeLint(result: LintResult): string[] {
  const { findings, fixed, vendor, fatal } = result;
  const count = (n: number, noun: string): string => `${n} ${noun}${n === 1 ? '' : 's'}`;
  const lines = [
    `${result.model} on ${result.soc} (HTP ${result.arch}) at ${result.scheme}: ${count(result.nodes, 'node')}, ${count(findings.length, 'finding')}`,
  ];
  for (const finding of findings) lines.push('', ...describeFinding(finding));
  if (fixed) {
    lines.push(
      '',
      `written: ${fixed.file}${fixed.passes.length > 0 ? `, after ${fixed.passes.join(', ')}` : ', unchanged'}`,
    );
    if (fixed.left.length > 0)
      lines.push(`left: ${fixed.left.map(({ code, reason }) => `${code} ${reason}`).join('; ')}`);
  }
  if (vendor) {
    const { refusals, errors, contradicts } = vendor;
    lines.push(
      '',
      `the vendor's validator (QAIRT ${vendor.toolchain.qairt}), asked about the graph as compile hands it over:`,
    );
    if (refusals.length + errors.length === 0) lines.push('  it takes the whole graph');
    for (const { node, reason } of refusals) lines.push(`  ${nameOf(node)} (${node.op}): ${reason}`);
    for (const error of errors) lines.push(`  ${error}`);
    for (const code of contradicts)
      lines.push(`  it takes what ${code} says it refuses: this version is not the one of the rules`);
  }
  lines.push(
    '',
    findings.length === 0
      ? `nothing is known against it (rules measured on ${MEASURED_ON})`
      : fatal.length > 0
        ? `not for this NPU as it is: ${[...new Set(fatal)].join(', ')}`
        : 'everything is mended, or can be',
  );
  return lines;
}

const SHOWN = 5;

function describeFinding({ code, verdict, reason, nodes, mend, measured }: Finding): string[] {
  const shown = [...new Set(nodes.map(nameOf))];
  const more = shown.length > SHOWN ? ` and ${shown.length - SHOWN} more` : '';
  return [
    `${code} ${verdict}: ${reason} (${measured})`,
    `  ${!mend ? 'no rewrite' : mend.kind === 'pass' ? `mended by ${mend.pass}: compile does it, --fix writes it` : mend.kind === 'quantization' ? `mended when quantized: ${mend.what}` : `mended by ${mend.flag}`}`,
    ...(shown.length > 0
      ? [`  ${[...new Set(nodes.map(({ op }) => op))].join(', ')}: ${shown.slice(0, SHOWN).join(', ')}${more}`]
      : []),
  ];
}

function nameOf({ name, from }: FindingNode): string {
  return from.length > 0 ? from.join('+') : name;
}
