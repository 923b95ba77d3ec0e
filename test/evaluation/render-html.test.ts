import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { Browser, BrowserContextOptions, Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { renderHtml } from '../../evaluation/render-html.ts';
import type { Report } from '../../evaluation/report.ts';
import { describePixels, hasBrowser, inspectPage, launchBrowser, type WatchedPage } from './browser.ts';
import { HOSTILE, LAYERS, makeReport, VALUES } from './make-report.ts';

const WIDE = { width: 1280, height: 900 };
const PHONE = { width: 420, height: 860 };

/** Pixels that the page is wider than the window. */
async function overflow(page: Page): Promise<number> {
  return await page.evaluate<number>('document.documentElement.scrollWidth - innerWidth');
}

async function openAll(page: Page): Promise<void> {
  await page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true");
}

/** A report with everything too long, not a number, or missing. */
function makeUnruly(): Report {
  const report = makeReport();
  const name = 'Unbreakable'.repeat(40);
  const { onnx, tflite, qnn } = report.targets;
  return {
    ...report,
    source: name,
    scheme: 'fp16',
    floatPerplexity: Number.NaN,
    targets: {
      onnx: {
        ...onnx!,
        logits: { ...onnx!.logits!, ratio: 189_803.26, ratioError: 25_405, divergence: 12.42, sqnr: -6 },
        values: onnx!.values.map((value, i) => ({
          ...value,
          name: `${name}.${value.name}`,
          from: [name, name],
          sqnr: i % 5 === 0 ? Number.NaN : value.sqnr - 40,
        })),
      },
      tflite: { ...tflite!, logits: { ...tflite!.logits!, ratio: Number.NaN, divergence: Number.NaN }, values: [] },
      qnn: { ...qnn!, execution: 'read-back-only', notes: [name] },
    },
    prompt: name,
    samples: { float: name, onnx: `${name} ${name}` },
    plan: report.plan.map((line) => ({ ...line, value: name, why: name })),
    remarks: [name],
    command: name,
  };
}

describe.skipIf(!hasBrowser)('renderHtml in a browser', () => {
  let browser: Browser;
  let folder: string;
  let url: string;
  let unruly: string;

  beforeAll(async () => {
    browser = await launchBrowser();
    folder = mkdtempSync(join(tmpdir(), 'npuc-html-'));
    const write = (name: string, report: Report): string => {
      writeFileSync(join(folder, name), renderHtml(report));
      return pathToFileURL(join(folder, name)).href;
    };
    url = write('report.html', makeReport());
    unruly = write('unruly.html', makeUnruly());
  });

  afterAll(async () => {
    await browser?.close();
    if (folder) rmSync(folder, { recursive: true, force: true });
  });

  const look = (
    options: BrowserContextOptions,
    inspect: (watched: WatchedPage) => Promise<void>,
    address = url,
  ): Promise<void> => inspectPage(browser, address, options, inspect);

  test.each([
    ['wide, light', WIDE, 'light'],
    ['wide, dark', WIDE, 'dark'],
    ['phone, light', PHONE, 'light'],
    ['phone, dark', PHONE, 'dark'],
  ] as const)('%s: is drawn, fits the window, asks for nothing', async (_name, viewport, colorScheme) => {
    await look({ viewport, colorScheme }, async ({ page }) => {
      const { colours, drawn } = await describePixels(browser, await page.screenshot());
      expect(colours).toBeGreaterThan(50);
      expect(drawn).toBeGreaterThan(0.1);
      const ground = await page.evaluate<string>('getComputedStyle(document.body).backgroundColor');
      const [red] = /\d+/.exec(ground)!.map(Number);
      expect(colorScheme === 'dark' ? red! < 60 : red! > 200).toBe(true);
      await openAll(page);
      expect(await overflow(page)).toBe(0);
    });
  });

  test.each([
    ['wide', WIDE],
    ['phone', PHONE],
  ])('%s: names without end, NaN and missing parts neither overflow nor break it', async (_name, viewport) => {
    await look(
      { viewport },
      async ({ page }) => {
        await openAll(page);
        expect(await overflow(page)).toBe(0);
        expect(await page.locator('.verdict').textContent()).toContain('Broken');
        expect(await page.locator('article.t-qnn .badge').textContent()).toContain('Not run');
        expect(await page.locator('#ratio .nan').count()).toBe(1);
        const outside = await page.evaluate<string[]>(`
          [...document.querySelectorAll('svg *')]
            .flatMap((node) => [...node.attributes])
            .filter(({ value }) => /NaN|Infinity|undefined/.test(value))
            .map(({ name, value }) => name + '=' + value)`);
        expect(outside).toEqual([]);
      },
      unruly,
    );
  });

  test('the answer is in the first window', async () => {
    await look({ viewport: WIDE }, async ({ page }) => {
      for (const selector of ['.verdict', '.cards']) {
        const box = (await page.locator(selector).boundingBox())!;
        expect(box.y + box.height).toBeLessThan(WIDE.height);
      }
      expect(await page.locator('.verdict').textContent()).toContain('tflite is clearly worse than the float model');
      expect(await page.locator('.lead').textContent()).toMatch(/Farthest from float: tflite.*model\.layers\.2\.mlp/s);
      expect(await page.title()).toBe('demo <b>bold</b> for SM8750: Degraded');
    });
  });

  test('charts hold every value once', async () => {
    await look({ viewport: WIDE }, async ({ page }) => {
      expect(await page.locator('#network .point').count()).toBe(3 * VALUES);
      for (const target of ['onnx', 'tflite', 'qnn'])
        expect(await page.locator(`#network .t-${target} .point`).count()).toBe(VALUES);
      expect(await page.locator('#network .stretch').count()).toBe(LAYERS + 2);
      expect(await page.locator('#network .layer').allTextContents()).toEqual(['in', '0', '1', '2', 'out']);
      expect(await page.locator('#ratio .bar').count()).toBe(2);
      expect(await page.locator('#divergence .bar').count()).toBe(3);
      expect(await page.locator('#sizes .part').count()).toBe(5);
    });
  });

  test('higher dB are drawn higher, later values further right, bars to scale', async () => {
    await look({ viewport: WIDE }, async ({ page }) => {
      const points = await page.locator('#network .t-onnx .point').evaluateAll((nodes) =>
        nodes.map((node) => {
          const { x, y, width, height } = node.getBoundingClientRect();
          return { x: x + width / 2, y: y + height / 2 };
        }),
      );
      const { values } = makeReport().targets.onnx!;
      points.forEach((point, i) => {
        if (i === 0) return;
        expect(point.x).toBeGreaterThan(points[i - 1]!.x);
        const rise = values[i]!.sqnr - values[i - 1]!.sqnr;
        if (Number.isFinite(rise)) expect(Math.sign(points[i - 1]!.y - point.y)).toBe(Math.sign(rise));
      });
      const [onnx, tflite] = await page
        .locator('#divergence .bar')
        .evaluateAll((nodes) => nodes.map((node) => node.getBoundingClientRect().width));
      expect(tflite! / onnx!).toBeCloseTo(0.2231 / 0.00671, 0);
    });
  });

  test('the value under the pointer is named, and targets can be hidden', async () => {
    await look({ viewport: WIDE }, async ({ page }) => {
      await page.locator('#network').scrollIntoViewIfNeeded();
      const spot = (await page.locator('#network .t-tflite .point').nth(5).boundingBox())!;
      await page.mouse.move(spot.x + spot.width / 2, spot.y + spot.height / 2);
      expect(await page.locator('.readout').textContent()).toBe(
        'tflite layers.0.mlp_product 14.8 dB, model.layers.0.mlp',
      );
      await page.locator('#show-tflite').uncheck();
      expect(await page.locator('#network .series.t-tflite').isVisible()).toBe(false);
      expect(await page.locator('#network .series.t-onnx').isVisible()).toBe(true);
      await page.mouse.move(spot.x + spot.width / 2 + 1, spot.y + spot.height / 2);
      expect(await page.locator('.readout').textContent()).not.toContain('tflite');
    });
  });

  test('tables sort by their figures', async () => {
    await look({ viewport: WIDE }, async ({ page }) => {
      const column = page.locator('#worst-onnx tbody td:nth-child(2)');
      const button = page.locator('#worst-onnx th').nth(1).getByRole('button');
      const first = (await column.allTextContents()).map(Number);
      expect(first).toHaveLength(10);
      expect(first).toEqual([...first].sort((a, b) => a - b));
      await button.click();
      await button.click();
      expect(await page.locator('#worst-onnx th').nth(1).getAttribute('aria-sort')).toBe('descending');
      expect((await column.allTextContents()).map(Number)).toEqual([...first].reverse());
    });
  });

  test('the plan is searched by all words, and figures that are absent sort last', async () => {
    await look({ viewport: WIDE }, async ({ page }) => {
      await page.locator('#plan summary').click();
      const rows = page.locator('#plan-table tbody tr:visible');
      expect(await rows.count()).toBe(6);
      await page.getByRole('searchbox').fill('I16 cache');
      expect(await rows.count()).toBe(1);
      expect(await page.locator('[data-count]').textContent()).toBe('1 of 6');
      await page.getByRole('searchbox').fill('');
      await page.locator('#plan-table th').nth(4).getByRole('button').click();
      const figures = await page.locator('#plan-table tbody td:nth-child(5)').allTextContents();
      expect(figures).toEqual(['17.8', '18.0', '21.5', '', '', '']);
    });
  });

  test('names and texts are shown as they are, and none of them becomes markup', async () => {
    await look({ viewport: WIDE }, async ({ page }) => {
      await openAll(page);
      expect(await page.locator('script').count()).toBe(1);
      expect(await page.locator('img, iframe, h1 b, .text i').count()).toBe(0);
      expect(await page.locator('h1').textContent()).toBe('demo <b>bold</b> for SM8750');
      expect(await page.locator('#worst-onnx tbody').textContent()).toContain(HOSTILE);
      expect(await page.locator('#plan-table').textContent()).toContain('override <img src=x onerror=alert(1)>');
      expect(await page.locator('.remarks').textContent()).toContain('</script><script>alert(2)</script>');
      expect(await page.locator('#command').textContent()).toBe(makeReport().command);
      expect(await page.locator('.sample.t-tflite .text').textContent()).toContain('I am <i>not</i>," said\u2407 the');
    });
  });

  test('what the float model did not write is marked', async () => {
    await look({ viewport: WIDE }, async ({ page }) => {
      expect(await page.locator('.sample.t-onnx mark').count()).toBe(0);
      expect(await page.locator('.sample.t-tflite mark').first().textContent()).toBe('very');
      expect(await page.locator('.sample.t-qnn').textContent()).toContain('too slow');
    });
  });

  test('is whole without its script', async () => {
    await look({ viewport: PHONE, javaScriptEnabled: false }, async ({ page }) => {
      expect(await page.locator('.js-only:visible').count()).toBe(0);
      expect(await page.locator('#network .point').count()).toBe(3 * VALUES);
      await page.locator('#plan summary').click();
      expect(await page.locator('#plan-table tbody tr:visible').count()).toBe(6);
      await page.locator('#show-qnn').uncheck();
      expect(await page.locator('#network .series.t-qnn').isVisible()).toBe(false);
    });
  });

  test('prints on paper', async () => {
    await look({ viewport: WIDE }, async ({ page }) => {
      expect((await page.pdf({ format: 'A4' })).length).toBeGreaterThan(20_000);
      await page.emulateMedia({ media: 'print' });
      expect(await page.locator('[data-copy]').isVisible()).toBe(false);
    });
  });

  test('its policy holds even where markup would come in', async () => {
    const asked: string[] = [];
    const injected = `<img src="/a.png"><link rel="stylesheet" href="/b.css"><script>document.title = 'owned'; fetch('/c')</script>`;
    const text = renderHtml(makeReport()).replace('<main>', `<main>${injected}`);
    const server = createServer((request, response) => {
      response.setHeader('content-type', 'text/html');
      if (request.url === '/report') response.end(text);
      else if (request.url === '/unguarded') response.end(text.replace('Content-Security-Policy', 'none'));
      else {
        asked.push(request.url!);
        response.end();
      }
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const address = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const page = await browser.newPage();
    try {
      await page.goto(`${address}/report`, { waitUntil: 'networkidle' });
      expect(await page.locator('main > img').count()).toBe(1);
      expect(await page.title()).toBe('demo <b>bold</b> for SM8750: Degraded');
      expect(asked).toEqual([]);
      // Without its policy the same page does ask: the list above would have shown it.
      await page.goto(`${address}/unguarded`, { waitUntil: 'networkidle' });
      expect(await page.title()).toBe('owned');
      expect(asked.sort()).toEqual(['/a.png', '/b.css', '/c']);
    } finally {
      await page.close();
      server.close();
    }
  });
});

test('what graphs share and how their caches agree stands with the sizes', () => {
  const page = renderHtml(makeReport());
  expect(page).toContain('qnn: 4 graphs share 52 weights: 4.64 MB together, 17.1 MB alone.');
  expect(page).toContain('agree with those of the largest: 128 to 88.3 dB.');
});

test('says nothing of this machine', () => {
  expect(renderHtml(makeReport())).not.toMatch(/https?:\/\/|file:\/\/|\/work\/|\/home\/|\/root\//);
});
