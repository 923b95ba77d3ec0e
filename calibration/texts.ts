import { createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { NpucError } from '../compiler/errors.ts';
import type { Tokenizer } from '../compiler/runtime/tokenizer.ts';

/** The package's own folder: where package.json lies, above the sources or the build. */
export function packageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder);
  return folder;
}

/** The public-domain texts that come with the package (fixtures/texts/README.md); the two are disjoint books. */
export function defaultText(kind: 'calibration' | 'evaluation'): string {
  return join(packageRoot(), 'fixtures', 'texts', `${kind}.txt`);
}

/** The start token, where the tokenizer puts one before every text: windows of text begin with it. */
export function startTokens(tokenizer: Tokenizer): number[] {
  const [first] = tokenizer.encode('', { addSpecialTokens: true });
  return first === undefined || first !== tokenizer.bosId ? [] : [first];
}

export interface TokenText {
  readonly ids: readonly number[];
  /** SHA-256 of the file. */
  readonly digest: string;
  readonly path: string;
}

/**
 * Reads a text and cuts it into at most `limit` tokens from its start.
 * Only as much text as the limit can need is tokenized: 8 characters a token is more than any tokenizer of prose gives.
 * @throws IO001 when it cannot be read, QT110 when it gives fewer than `least` tokens
 */
export function readTokens(path: string, tokenizer: Tokenizer, limit: number, least: number): TokenText {
  let bytes: Buffer;
  try {
    bytes = readFileSync(path);
  } catch (cause) {
    throw new NpucError('IO001', { message: `cannot read ${path}: ${(cause as Error).message}`, where: path, cause });
  }
  const text = bytes.toString('utf8').slice(0, limit * 8);
  const ids = tokenizer.encode(text, { addSpecialTokens: false }).slice(0, limit);
  if (ids.length < least) {
    throw new NpucError('QT110', {
      message: `${path} gives ${ids.length} tokens, at least ${least} are needed`,
      where: path,
    });
  }
  return { ids, digest: createHash('sha256').update(bytes).digest('hex'), path };
}

/**
 * Calibration tokens of a text for a checkpoint with a chat template: the first half plain, the second half as
 * conversations, paragraph answering paragraph, since a chat's markers carry outliers that plain prose never shows.
 * @throws as readTokens; IM133 when the template refuses a conversation
 */
export function readChatTokens(path: string, tokenizer: Tokenizer, limit: number, least: number): TokenText {
  const plain = readTokens(path, tokenizer, limit, least);
  const paragraphs = readFileSync(path, 'utf8')
    .split(/\n\s*\n/)
    .map((paragraph) => paragraph.replaceAll(/\s+/g, ' ').trim())
    .filter((paragraph) => paragraph.length > 40);
  const ids = plain.ids.slice(0, Math.ceil(limit / 2));
  // From the end of the text, so that both halves are different passages.
  for (let i = paragraphs.length - 2; i >= 0 && ids.length < limit; i -= 2) {
    const conversation = [
      { role: 'user', content: paragraphs[i]! },
      { role: 'assistant', content: paragraphs[i + 1]! },
    ];
    const text = tokenizer.applyChatTemplate(conversation, { addGenerationPrompt: false });
    ids.push(...tokenizer.encode(text, { addSpecialTokens: false }));
  }
  return { ...plain, ids: ids.slice(0, limit) };
}
