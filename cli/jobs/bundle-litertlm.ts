import { existsSync, renameSync, rmSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { NpucError } from '../../compiler/errors.ts';
import type { DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { argmax } from '../../compiler/runtime/generate.ts';
import { runLitertLm } from '../../compiler/runtime/litert-lm.ts';
import type { Tokenizer } from '../../compiler/runtime/tokenizer.ts';
import { checkFiles, readManifest } from '../../targets/manifest.ts';
import { type InstalledToolchain, requireToolchain } from '../../targets/qnn/toolchain.ts';
import { requireWholeLitertLm } from '../../targets/tflite/check-litertlm.ts';
import {
  type LitertLmBundle,
  requireLitertLmTarget,
  writeIdBundle,
  writeLitertLmBundle,
} from '../../targets/tflite/litertlm-bundle.ts';
import { openCompiled } from './open-compiled.ts';
import { version } from './version.ts';

export interface BundleLitertLmOptions {
  readonly folder: string;
  /** The .litertlm file. */
  readonly out: string;
  readonly force: boolean;
  /** In the place of the folder's tokenizer. */
  readonly tokenizer?: string;
  /** Asks LiteRT-LM itself and compares every token. */
  readonly verify?: { readonly prompt: string; readonly tokens: number };
  readonly note: (line: string) => void;
}

export interface BundleLitertLmResult {
  readonly bundle: LitertLmBundle;
  readonly warnings: readonly string[];
  readonly verified?: LitertLmAgreement;
}

/** What LiteRT-LM wrote, and how far `npuc generate` would have gone along with it. */
export interface LitertLmAgreement {
  readonly ids: readonly number[];
  readonly text: string;
  /** With LiteRT-LM's own kernels, driven by us: every token is the same. */
  readonly native: TokenAgreement;
  /** With LiteRT.js, whose integer kernels round some elements by one step differently. */
  readonly js: TokenAgreement;
}

/** How LiteRT-LM's tokens stand in our logits, when the same tokens went before them. */
export interface TokenAgreement {
  readonly engine: string;
  /** Tokens that are not our own choice. */
  readonly differing: readonly number[];
  /** The most that our best logit is above that of LiteRT-LM's token. */
  readonly gap: number;
}

/** Logits that are nearer than this are a tie. */
const TIE = 1e-3;

/**
 * Bundles a compiled folder for LiteRT-LM, checks the bundle, and on demand runs it in the real LiteRT-LM. The file appears
 * at the end, whole; on any error nothing is left.
 * @throws TG110, TG111 when the folder is not whole, TF401 when it has nothing for LiteRT-LM, TF402 to TF404, CL003, QN001
 */
export async function bundleLitertLm(options: BundleLitertLmOptions): Promise<BundleLitertLmResult> {
  const { folder, out, note } = options;
  const manifest = readManifest(folder);
  requireLitertLmTarget(folder, manifest);
  const toolchain = options.verify && requireToolchain('litert-lm');
  checkFiles(folder, manifest);
  checkReplaceable(out, options.force);
  // LiteRT-LM knows the format by the name.
  const partial = `${out}.partial-${process.pid}.litertlm`;
  const ids = `${out}.ids-${process.pid}.litertlm`;
  try {
    note('bundle');
    const bundle = writeLitertLmBundle(folder, manifest, partial, {
      npuc: version(),
      ...(options.tokenizer === undefined ? {} : { tokenizer: options.tokenizer }),
    });
    note('check');
    const warnings = requireWholeLitertLm(partial, out);
    let verified: LitertLmAgreement | undefined;
    if (options.verify && toolchain) {
      writeIdBundle(folder, manifest, ids);
      verified = await verifyBundle({
        folder,
        out,
        bundle: partial,
        idBundle: ids,
        ...options.verify,
        toolchain,
        note,
      });
    }
    renameSync(partial, out);
    return { bundle, warnings, ...(verified ? { verified } : {}) };
  } finally {
    for (const path of [partial, ids]) rmSync(path, { force: true });
  }
}

/** @throws CL003 for what is not an older bundle, IO002 where there is no folder to write to */
function checkReplaceable(out: string, force: boolean): void {
  if (!existsSync(dirname(out)))
    throw new NpucError('IO002', { message: `there is no folder ${dirname(out)}`, where: out, hint: 'make it first' });
  if (!existsSync(out)) return;
  if (statSync(out).isDirectory())
    throw new NpucError('CL003', {
      message: `${out} is a folder`,
      where: out,
      hint: `--out ${join(out, 'model.litertlm')}`,
    });
  if (force || out.endsWith('.litertlm')) return;
  throw new NpucError('CL003', {
    message: `${out} exists and is no .litertlm file`,
    where: out,
    hint: 'choose another --out, or --force to replace it',
  });
}

interface VerifyOptions {
  readonly folder: string;
  /** What messages call the bundle. */
  readonly out: string;
  readonly bundle: string;
  /** The same model behind a tokenizer that spells ids. */
  readonly idBundle: string;
  readonly prompt: string;
  readonly tokens: number;
  readonly toolchain: InstalledToolchain<'litert-lm'>;
  readonly note: (line: string) => void;
}

/**
 * Asks LiteRT-LM, greedily, and holds every token against our logits after the same tokens.
 * @throws TF403 when it refuses the bundle, TF404 when it writes another text, RT202 when it crashes
 */
async function verifyBundle(options: VerifyOptions): Promise<LitertLmAgreement> {
  const { folder, out, prompt, tokens, toolchain, note } = options;
  note('run LiteRT-LM');
  const js = await openCompiled(folder, 'tflite');
  const { tokenizer } = js;
  try {
    const asked = tokenizer.encode(prompt, { addSpecialTokens: true });
    const spelled = asked.map((id) => `<${id}>`).join('');
    const byIds = await runLitertLm(
      toolchain.library,
      options.idBundle,
      {
        queries: [{ prompt: spelled, maxTokens: tokens }],
      },
      out,
    );
    const all = [...byIds.answers[0]!.matchAll(/<(\d+)>/g)].map((match) => Number(match[1]));
    const end = all.findIndex((id) => tokenizer.eosIds.includes(id));
    const ids = end < 0 ? all : all.slice(0, end);
    const byText = await runLitertLm(
      toolchain.library,
      options.bundle,
      {
        texts: [prompt],
        queries: [{ prompt, maxTokens: tokens }],
        chats: tokenizer.chatTemplate === undefined ? [] : [{ role: 'user', content: prompt }],
      },
      out,
    );
    note('run npuc generate');
    const inJs = await followTokens(js.session, asked, ids);
    const native = await openCompiled(folder, 'tflite', 'litert-lm');
    const inNative = await followTokens(native.session, asked, ids).finally(() => native.session.close());
    refuseDifference(options, tokenizer, ids, inNative);
    const text = byText.answers[0]!;
    refuseText(options, tokenizer, asked, byText.ids[0]!, ids, text);
    if (byText.rendered.length > 0) refuseChat(options, tokenizer, byText.rendered[0]!);
    return { ids, text, native: inNative, js: inJs };
  } finally {
    await js.session.close();
  }
}

/** Feeds a session with tokens that another engine chose and looks how near each is to the session's own choice. */
export async function followTokens(
  session: DecoderSession,
  prompt: readonly number[],
  ids: readonly number[],
): Promise<TokenAgreement> {
  session.reset();
  const differing: number[] = [];
  let gap = 0;
  let [logits] = await session.feed(prompt);
  for (const [at, id] of ids.entries()) {
    const best = argmax(logits!);
    if (best !== id) {
      differing.push(at);
      gap = Math.max(gap, logits![best]! - logits![id]!);
    }
    if (at + 1 < ids.length) [logits] = await session.feed([id]);
  }
  return { engine: session.engine, differing, gap };
}

function refuseDifference(
  { out }: VerifyOptions,
  tokenizer: Tokenizer,
  ids: readonly number[],
  { differing, gap }: TokenAgreement,
): void {
  if (differing.length === 0 || gap <= TIE) return;
  const at = differing[0]!;
  throw new NpucError('TF404', {
    message:
      `LiteRT-LM writes ${JSON.stringify(tokenizer.decode(ids))}: token ${at} of ${ids.length} is not the likeliest one ` +
      `(${gap.toFixed(4)} below it)`,
    where: out,
  });
}

/** What LiteRT-LM reads and writes with the bundle's own tokenizer must be what those ids are. */
function refuseText(
  { out, prompt }: VerifyOptions,
  tokenizer: Tokenizer,
  asked: readonly number[],
  read: readonly number[],
  ids: readonly number[],
  text: string,
): void {
  const plain = tokenizer.encode(prompt, { addSpecialTokens: false });
  const fail = (message: string): never => {
    throw new NpucError('TF404', {
      message,
      where: out,
      hint: "the bundle's tokenizer is not the checkpoint's, or LiteRT-LM treats it in another way",
    });
  };
  if (read.join() !== plain.join())
    fail(`LiteRT-LM reads ${JSON.stringify(prompt)} as the tokens ${read.join(' ')}, npuc as ${plain.join(' ')}`);
  // A decoder may strip the space that begins a text: compare what comes after the prompt.
  const whole = tokenizer.decode([...asked, ...ids]);
  if (!whole.endsWith(text.trimStart()) || tokenizer.decode(ids).trim() !== text.trim())
    fail(`LiteRT-LM writes ${JSON.stringify(text)} for the tokens of ${JSON.stringify(tokenizer.decode(ids))}`);
}

/** What the prompt template makes of a first message: the start token apart, which the runtime adds by itself. */
function refuseChat({ out, prompt }: VerifyOptions, tokenizer: Tokenizer, rendered: string): void {
  const [start] = tokenizer.encode('', { addSpecialTokens: true });
  const text = start === undefined ? undefined : tokenizer.tokenOf(start);
  const ours = tokenizer.applyChatTemplate([{ role: 'user', content: prompt }], { addGenerationPrompt: true });
  const wanted = text !== undefined && ours.startsWith(text) ? ours.slice(text.length) : ours;
  if (rendered === wanted) return;
  const twice = text !== undefined && rendered === ours;
  throw new NpucError('TF404', {
    message: twice
      ? `the prompt template begins with ${text}, which LiteRT-LM puts before every text as well`
      : `LiteRT-LM makes ${JSON.stringify(rendered)} of a message, the chat template ${JSON.stringify(wanted)}`,
    where: out,
    hint: 'write the special tokens of the template as bos_token and eos_token',
  });
}
