import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { defaultText, readChatTokens, readTokens } from '../../calibration/texts.ts';
import { openCheckpoint } from '../../compiler/import/checkpoint.ts';
import { loadTokenizer } from '../../compiler/runtime/tokenizer.ts';
import { demo } from '../cli/run-npuc.ts';

test('the default texts are different books', () => {
  const [calibration, evaluation] = (['calibration', 'evaluation'] as const).map((kind) =>
    readFileSync(defaultText(kind), 'utf8'),
  );
  expect(createHash('sha256').update(calibration!).digest('hex')).not.toBe(
    createHash('sha256').update(evaluation!).digest('hex'),
  );
  const sentences = new Set(calibration!.match(/[^.!?]{60,}[.!?]/g));
  const shared = (evaluation!.match(/[^.!?]{60,}[.!?]/g) ?? []).filter((sentence) => sentences.has(sentence));
  expect(shared).toEqual([]);
});

test('tokens are cut at the limit, and too few are an error', async () => {
  const { tokenizer } = await openCheckpoint(demo);
  const path = defaultText('calibration');
  expect(readTokens(path, tokenizer!, 100, 10).ids).toHaveLength(100);
  expect(() => readTokens(path, tokenizer!, 1e6, 1e6)).toThrowError(expect.objectContaining({ code: 'QT110' }));
  expect(() => readTokens('/nowhere', tokenizer!, 10, 10)).toThrowError(expect.objectContaining({ code: 'IO001' }));
});

test('with a chat template the second half is conversations', async () => {
  const { tokenizerFiles, tokenizer: plain } = await openCheckpoint(demo);
  const tokenizer = loadTokenizer(
    JSON.parse(tokenizerFiles.get('tokenizer.json')!),
    JSON.parse(tokenizerFiles.get('tokenizer_config.json')!),
    {
      chatTemplate: "{% for m in messages %}<<{{ m['role'] }}>>{{ m['content'] }}{% endfor %}",
    },
  );
  const path = defaultText('calibration');
  const chat = readChatTokens(path, tokenizer, 4000, 100);
  expect(chat.ids).toHaveLength(4000);
  expect(chat.ids.slice(0, 2000)).toEqual(readTokens(path, plain!, 4000, 100).ids.slice(0, 2000));
  const second = tokenizer.decode(chat.ids.slice(2000));
  expect(second).toContain('<<user>>');
  expect(second).toContain('<<assistant>>');
});
