#!/usr/bin/env node
// Compiles the crate's kernels in headless Chromium, with WebGPU on SwiftShader.
//
// In:  a JSON file, as `cargo run --example dump_shaders` prints it (see --help).
// Out: one line per kernel the browser refuses, then `N modules, M pipelines, K failed`.
//
// Why a browser as well: the native front end has no uniformity analysis and does not hold
// workgroup memory against the limits, and a device with default limits and no features is what
// every WebGPU implementation has to give.
//
// Kernels are compiled, never run: numbers are the native tests' business.

import { createServer } from 'node:http';
import { accessSync, constants as fsConstants, readFileSync, statSync } from 'node:fs';
import { delimiter, join } from 'node:path';

const HELP = `usage: node tools/check_shaders/check.mjs SHADERS.json

Compiles every kernel in SHADERS.json in headless Chromium (WebGPU on SwiftShader, default limits, no
features): the module, an explicit bind group layout, and the compute pipeline with its constants.

  {"modules": [{
    "name": "recurrent_step.rows4.x64",   // unique; failures are reported under it
    "label": "lstm.recurrent_step",       // label of the GPU objects
    "wgsl": "...",
    "entry_point": "recurrent_step",
    "constants": {"WG_X": 64},            // override constants
    "bindings": [{"group": 0, "binding": 0, "dynamic_offset": true,
                  "kind": "uniform"}]     // or "storage", "read-only-storage"
  }]}

Before that, some modules of its own that a browser must refuse; if it takes one, the run fails.

Exit code: 0 all compiled; 1 something failed, or there was nothing to compile; 2 it could not be tried.

Environment:
  CHROMIUM   the browser to start; else chromium, chromium-browser or google-chrome from PATH
Once before: npm ci, in tools/check_shaders.`;

// The slowest kernels take SwiftShader seconds, more on a busy machine.
const ENTRY_TIMEOUT_MS = 180_000;
const AT_ONCE = 4;

// Without the networking flags a closed network sees many refused connections at each start.
const BROWSER_FLAGS = [
  '--enable-unsafe-webgpu',
  '--use-webgpu-adapter=swiftshader',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

const KINDS = ['uniform', 'storage', 'read-only-storage'];

class CannotTry extends Error {}

function findBrowser() {
  const usable = (path) => {
    try {
      accessSync(path, fsConstants.X_OK);
      return statSync(path).isFile();
    } catch {
      return false;
    }
  };
  const named = process.env.CHROMIUM;
  if (named) {
    if (usable(named)) return named;
    throw new CannotTry(`CHROMIUM=${named} is not a program`);
  }
  for (const name of ['chromium', 'chromium-browser', 'google-chrome']) {
    for (const folder of (process.env.PATH ?? '').split(delimiter)) {
      if (folder && usable(join(folder, name))) return join(folder, name);
    }
  }
  throw new CannotTry('no chromium in PATH: install it (Debian: apt-get install chromium) or set CHROMIUM');
}

// A misspelt field must not quietly weaken the check, so the shape is held to exactly.
function readModules(path) {
  let parsed;
  try {
    parsed = JSON.parse(readFileSync(path, 'utf8'));
  } catch (error) {
    throw new CannotTry(`${path}: ${error.message}`);
  }
  const wrong = (what) => new CannotTry(`${path}: ${what}`);
  const fields = (object, where, shape) => {
    if (object === null || typeof object !== 'object') throw wrong(`${where}: expected an object`);
    for (const key of Object.keys(object)) {
      if (!(key in shape)) throw wrong(`${where}: unknown field ${key}`);
    }
    for (const [key, holds] of Object.entries(shape)) {
      if (!holds(object[key])) throw wrong(`${where}: ${key}: unexpected ${JSON.stringify(object[key])}`);
    }
  };
  const text = (value) => typeof value === 'string' && value !== '';
  const index = (value) => Number.isInteger(value) && value >= 0;

  if (!Array.isArray(parsed?.modules)) throw wrong('expected {"modules": [...]}');
  const seen = new Set();
  for (const [i, entry] of parsed.modules.entries()) {
    fields(entry, `modules[${i}]`, {
      name: text,
      label: text,
      wgsl: text,
      entry_point: text,
      constants: (value) =>
        value !== null && typeof value === 'object' && Object.values(value).every((c) => typeof c === 'number'),
      bindings: Array.isArray,
    });
    for (const binding of entry.bindings) {
      fields(binding, `${entry.name}: bindings`, {
        group: index,
        binding: index,
        kind: (value) => KINDS.includes(value),
        dynamic_offset: (value) => typeof value === 'boolean',
      });
    }
    if (seen.has(entry.name)) throw wrong(`two modules are named ${entry.name}`);
    seen.add(entry.name);
  }
  return parsed.modules;
}

// What a browser has to refuse, the words its reason must contain, and one it has to take.
function selfChecks() {
  const entry = (name, wgsl, bindings = [{ group: 0, binding: 0, kind: 'storage', dynamic_offset: false }]) => ({
    name,
    label: `selfcheck.${name}`,
    wgsl,
    entry_point: 'main',
    constants: {},
    bindings,
  });
  const nine = Array.from({ length: 9 }, (_, i) => i);
  const storage = '@group(0) @binding(0) var<storage, read_write> data: array<u32>;\n';
  const sized = `${storage}override WG_X: u32 = 1;\n@compute @workgroup_size(WG_X)\n`;
  return {
    accepted: {
      ...entry(
        'a valid kernel',
        `struct Params { count: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> data_in: array<f32>;
@group(0) @binding(2) var<storage, read_write> data_out: array<f32>;
override WG_X: u32 = 1;
var<workgroup> shared_sum: array<f32, WG_X>;
@compute @workgroup_size(WG_X)
fn main(@builtin(local_invocation_index) lane: u32) {
  shared_sum[lane] = data_in[lane];
  workgroupBarrier();
  if lane == 0u { data_out[0] = shared_sum[params.count]; }
}`,
        [
          { group: 0, binding: 0, kind: 'uniform', dynamic_offset: true },
          { group: 0, binding: 1, kind: 'read-only-storage', dynamic_offset: false },
          { group: 0, binding: 2, kind: 'storage', dynamic_offset: false },
        ],
      ),
      constants: { WG_X: 64 },
    },
    refused: [
      {
        reason: /uniform/i,
        entry: entry(
          'a barrier in non-uniform control flow',
          `${storage}@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) lane: u32) {
  if data[lane] > 3u { workgroupBarrier(); }
  data[lane] = 1u;
}`,
        ),
      },
      {
        reason: /expected/i,
        entry: entry('a syntax error', `${storage}@compute @workgroup_size(64)\nfn main() { data[0] = 1u }`),
      },
      {
        reason: /storage buffers/i,
        entry: entry(
          'nine storage buffers',
          `${nine.map((i) => `@group(0) @binding(${i}) var<storage, read_write> b${i}: array<u32>;`).join('\n')}
@compute @workgroup_size(1)
fn main() { ${nine.map((i) => `b${i}[0] = 1u;`).join(' ')} }`,
          nine.map((i) => ({ group: 0, binding: i, kind: 'storage', dynamic_offset: false })),
        ),
      },
      {
        reason: /workgroup storage/i,
        entry: entry(
          'more workgroup memory than the default limit',
          `${storage}var<workgroup> tile: array<u32, 4097>;
@compute @workgroup_size(1)
fn main() { tile[data[0]] = 1u; data[1] = tile[data[2]]; }`,
        ),
      },
      {
        reason: /invocations|workgroup size|workgroup_size/i,
        entry: { ...entry('a workgroup of 512', `${sized}fn main() { data[0] = 1u; }`), constants: { WG_X: 512 } },
      },
      {
        reason: /WG_Y|constant|override/i,
        entry: { ...entry('a constant nobody declared', `${sized}fn main() { data[0] = 1u; }`), constants: { WG_Y: 8 } },
      },
      {
        reason: /binding/i,
        entry: entry('a binding missing from the layout', `${sized}fn main() { data[0] = 1u; }`, []),
      },
    ],
  };
}

// ---- These two run inside the page. ----

async function openDevice() {
  if (!navigator.gpu) return { error: 'the page has no navigator.gpu' };
  const adapter = await navigator.gpu.requestAdapter();
  if (!adapter) return { error: 'requestAdapter() found nothing' };
  const device = await adapter.requestDevice();
  globalThis.device = device;
  globalThis.strayErrors = [];
  device.addEventListener('uncapturederror', (event) => globalThis.strayErrors.push(event.error.message));
  device.lost.then((info) => globalThis.strayErrors.push(`device lost: ${info.message}`));
  const { vendor, architecture, description } = adapter.info;
  return { adapter: [vendor, architecture, description].filter(Boolean).join(' ') };
}

async function compile(entry) {
  const { device } = globalThis;
  const errors = [];
  const warnings = [];
  // Scopes nest across everything in flight, so none stays open over an await.
  const scoped = async (make) => {
    device.pushErrorScope('validation');
    const made = make();
    const error = await device.popErrorScope();
    return [made, error];
  };

  const [module, moduleError] = await scoped(() =>
    device.createShaderModule({ label: entry.label, code: entry.wgsl }),
  );
  const lines = entry.wgsl.split('\n');
  const info = await module.getCompilationInfo();
  for (const { type, message, lineNum, linePos } of info.messages) {
    const place = lineNum ? `${lineNum}:${linePos}: ` : '';
    const source = lineNum ? `\n      ${lines[lineNum - 1].trim()}` : '';
    (type === 'error' ? errors : warnings).push(`${place}${message.trim()}${source}`);
  }
  if (errors.length === 0 && moduleError) errors.push(moduleError.message);
  if (errors.length > 0) return { stage: 'module', errors, warnings };

  const groups = Math.max(-1, ...entry.bindings.map((binding) => binding.group)) + 1;
  const bindGroupLayouts = [];
  for (let group = 0; group < groups; group += 1) {
    const entries = entry.bindings
      .filter((binding) => binding.group === group)
      .map(({ binding, kind, dynamic_offset }) => ({
        binding,
        visibility: GPUShaderStage.COMPUTE,
        buffer: { type: kind, hasDynamicOffset: dynamic_offset },
      }));
    const [layout, error] = await scoped(() => device.createBindGroupLayout({ label: entry.label, entries }));
    if (error) return { stage: `layout of group ${group}`, errors: [error.message], warnings };
    bindGroupLayouts.push(layout);
  }
  const [layout, layoutError] = await scoped(() =>
    device.createPipelineLayout({ label: entry.label, bindGroupLayouts }),
  );
  if (layoutError) return { stage: 'pipeline layout', errors: [layoutError.message], warnings };

  try {
    await device.createComputePipelineAsync({
      label: entry.label,
      layout,
      compute: { module, entryPoint: entry.entry_point, constants: entry.constants },
    });
  } catch (error) {
    errors.push(error.message);
  }
  return { stage: 'pipeline', errors, warnings };
}

// ---- Back in node. ----

async function compileIn(page, entry) {
  let timer;
  const late = new Promise((resolve) => {
    const errors = [`no answer within ${ENTRY_TIMEOUT_MS / 1000} s`];
    timer = setTimeout(() => resolve({ stage: 'pipeline', errors, warnings: [] }), ENTRY_TIMEOUT_MS);
  });
  const thrown = (error) => ({ stage: 'browser', errors: [error.message], warnings: [] });
  const result = await Promise.race([page.evaluate(compile, entry).catch(thrown), late]);
  clearTimeout(timer);
  return result;
}

async function runSelfChecks(page) {
  const { accepted, refused } = selfChecks();
  const problems = [];
  const taken = await compileIn(page, accepted);
  if (taken.errors.length > 0) {
    problems.push(`the browser refuses what it must accept: ${accepted.name}: ${taken.stage}: ${taken.errors[0]}`);
  }
  for (const { entry, reason } of refused) {
    const { errors } = await compileIn(page, entry);
    if (errors.length === 0) {
      problems.push(`the browser accepts what it must refuse: ${entry.name}`);
    } else if (!errors.some((error) => reason.test(error))) {
      problems.push(`the browser refuses ${entry.name}, but for another reason: ${errors[0]}`);
    }
  }
  return problems;
}

function indent(text) {
  return text.trim().replaceAll('\n', '\n    ');
}

async function checkAll(page, modules) {
  const results = new Array(modules.length);
  let next = 0;
  const worker = async () => {
    while (next < modules.length) {
      const i = next++;
      results[i] = await compileIn(page, modules[i]);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));

  let failed = 0;
  for (const [i, { stage, errors, warnings }] of results.entries()) {
    for (const warning of warnings) console.log(`warning ${modules[i].name}: ${indent(warning)}`);
    for (const error of errors) console.log(`FAILED  ${modules[i].name}: ${stage}: ${indent(error)}`);
    if (errors.length > 0) failed += 1;
  }
  return failed;
}

async function main(args) {
  if (args.includes('--help') || args.includes('-h')) {
    console.log(HELP);
    return 0;
  }
  if (args.length !== 1 || args[0].startsWith('-')) {
    throw new CannotTry('expected one argument, the JSON file with the shaders; see --help');
  }
  const modules = readModules(args[0]);
  const executablePath = findBrowser();
  const { chromium } = await import('playwright-core').catch(() => {
    throw new CannotTry('playwright-core is missing: run `npm ci` in tools/check_shaders');
  });

  // navigator.gpu exists only in a secure context; 127.0.0.1 counts as one, about:blank does not.
  const server = createServer((_, response) => {
    response.setHeader('content-type', 'text/html');
    response.end('<!doctype html><title>check_shaders</title>');
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  let browser;
  try {
    browser = await chromium.launch({ executablePath, headless: true, args: BROWSER_FLAGS }).catch((error) => {
      throw new CannotTry(`${executablePath} does not start: ${error.message}`);
    });
    const page = await browser.newPage();
    await page.goto(`http://127.0.0.1:${server.address().port}/`);
    const opened = await page.evaluate(openDevice);
    if (opened.error) throw new CannotTry(`no WebGPU in Chromium ${browser.version()}: ${opened.error}`);
    console.log(`Chromium ${browser.version()}, adapter ${opened.adapter || 'without a name'}`);

    const problems = await runSelfChecks(page);
    for (const problem of problems) console.log(`SELF-CHECK ${problem}`);
    if (problems.length > 0) return 1;

    const failed = await checkAll(page, modules);
    const strays = await page.evaluate(() => globalThis.strayErrors).catch((error) => [error.message]);
    for (const stray of strays) console.log(`FAILED  outside any kernel: ${indent(stray)}`);
    console.log(`${modules.length} modules, ${modules.length - failed} pipelines, ${failed} failed`);
    if (modules.length === 0) console.log('there was nothing to compile');
    return failed > 0 || strays.length > 0 || modules.length === 0 ? 1 : 0;
  } finally {
    await browser?.close();
    server.close();
    server.closeAllConnections();
  }
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  console.error(`check_shaders: ${error instanceof CannotTry ? error.message : (error.stack ?? error)}`);
  process.exitCode = 2;
}
