import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { NpucError } from '../../compiler/errors.ts';
import { generateTokens } from '../../compiler/runtime/generate.ts';
import { runGenie } from '../../compiler/runtime/genie.ts';
import { loadTokenizer } from '../../compiler/runtime/tokenizer.ts';
import { checkFiles, readManifest } from '../../targets/manifest.ts';
import { checkGenieBundle } from '../../targets/qnn/check-genie.ts';
import { checkMadeWith } from '../../targets/qnn/check-toolchain.ts';
import { CONFIG, type GenieManifest, requireGenieTarget, writeGenieBundle } from '../../targets/qnn/genie-bundle.ts';
import { type GenieConfig, TOKENIZER } from '../../targets/qnn/genie-config.ts';
import { requireToolchain, type Toolchain } from '../../targets/qnn/toolchain.ts';
import { openCompiled } from './open-compiled.ts';
import { openOutputFolder } from './output-folder.ts';
import { version } from './version.ts';

export interface BundleOptions {
  readonly folder: string;
  readonly out: string;
  readonly unshared: boolean;
  readonly force: boolean;
  /** Asks Genie on the simulator and compares it with `npuc generate`. */
  readonly verify?: { readonly prompt: string; readonly tokens: number };
  readonly note: (line: string) => void;
}

export interface BundleResult {
  readonly manifest: GenieManifest;
  readonly warnings: readonly string[];
  readonly verified?: GenieAgreement;
}

/** What Genie wrote, id for id what `npuc generate` writes. */
export interface GenieAgreement {
  readonly ids: readonly number[];
  readonly text: string;
}

/**
 * Bundles a compiled folder for Genie, checks the bundle, and on demand runs it in the real libGenie.
 * The bundle appears at the end, whole; on any error nothing is left.
 * @throws TG110, TG111 when the folder is not whole, QN015 when it is newer than the toolchain, QN020 when it has nothing for
 * Genie, QN021 to QN023, CL003
 */
export async function bundleGenie(options: BundleOptions): Promise<BundleResult> {
  const { folder, unshared, verify, note } = options;
  const manifest = readManifest(folder);
  const target = requireGenieTarget(folder, manifest);
  if (verify && target.facts.shared && !unshared) {
    throw new NpucError('CL001', {
      message: '--verify needs --unshared here: the simulator cannot execute a binary whose graphs share weights',
      hint: 'verify an unshared bundle, which has the same graphs, and ship the shared one',
    });
  }
  checkFiles(folder, manifest);
  const toolchain = requireToolchain('qnn');
  const other = checkMadeWith(manifest.toolchain, toolchain, folder);
  if (other) note(`WARNING: ${other}`);
  const output = openOutputFolder(options.out, options.force, [folder]);
  try {
    note('bundle');
    const written = await writeGenieBundle(folder, manifest, output.partial, {
      unshared,
      toolchain,
      npuc: version(),
    });
    note('check');
    const warnings = await checkGenieBundle(output.partial, toolchain);
    const verified = verify && (await verifyBundle(folder, output.partial, verify, toolchain, note));
    output.commit();
    return { manifest: written, warnings, ...(verified ? { verified } : {}) };
  } catch (error) {
    output.discard();
    throw error;
  }
}

/**
 * Asks Genie, greedily, and compares every token with ours.
 * @throws QN022 when Genie refuses the bundle, QN023 when it writes another text, RT202 when it crashes
 */
async function verifyBundle(
  folder: string,
  bundle: string,
  { prompt, tokens }: { readonly prompt: string; readonly tokens: number },
  toolchain: Toolchain,
  note: (line: string) => void,
): Promise<GenieAgreement> {
  note('run npuc generate');
  const { session, tokenizer } = await openCompiled(folder, 'qnn');
  const asked = tokenizer.encode(prompt, { addSpecialTokens: true });
  const ours: number[] = [];
  try {
    const greedy = { temperature: 0, topK: 0, topP: 1, seed: 0 };
    for await (const id of generateTokens(session, asked, tokens, tokenizer.eosIds, greedy)) ours.push(id);
  } finally {
    await session.close();
  }
  note('run Genie');
  const read = (name: string) => JSON.parse(readFileSync(join(bundle, name), 'utf8')) as Record<string, unknown>;
  const config = makeGreedy(read(CONFIG) as unknown as GenieConfig);
  // Genie puts the start token before ids as well.
  const rest = asked.slice(config.dialog.context['bos-token'] === -1 ? 0 : 1);
  const [byIds, byText] = await runGenie(toolchain, bundle, {
    config: JSON.stringify(config),
    queries: [
      { ids: rest, maxTokens: tokens },
      { prompt, maxTokens: tokens },
    ],
  });
  const theirs = (byIds?.ids ?? []).filter((id) => !tokenizer.eosIds.includes(id));
  const parts = ours.findIndex((id, i) => id !== theirs[i]);
  const refuse = (message: string, hint: string): never => {
    throw new NpucError('QN023', { message, where: bundle, hint });
  };
  if (parts >= 0 || theirs.length !== ours.length) {
    const at = parts >= 0 ? parts : Math.min(ours.length, theirs.length);
    refuse(
      `Genie writes ${JSON.stringify(tokenizer.decode(theirs))}, npuc generate ${JSON.stringify(tokenizer.decode(ours))}: they part at token ${at} of ${ours.length}`,
      'after many tokens the 8-bit cache can tip a close choice: try a shorter prompt or fewer tokens',
    );
  }
  // With the bundle's own tokenizer, which keeps the first space.
  const wanted = loadTokenizer(read(TOKENIZER)).decode(ours);
  const text = byText?.text ?? '';
  if (text !== wanted) {
    refuse(
      `Genie writes ${JSON.stringify(text)} for the text, its tokens are ${JSON.stringify(wanted)}`,
      "Genie's tokenizer treats this checkpoint's tokenizer.json in another way",
    );
  }
  return { ids: ours, text };
}

/** The same dialog without sampling. */
function makeGreedy(config: GenieConfig): GenieConfig {
  const sampler = { version: 1, seed: 42, temp: 1, 'top-k': 1, 'top-p': 1, greedy: true } as const;
  return { dialog: { ...config.dialog, sampler } };
}
